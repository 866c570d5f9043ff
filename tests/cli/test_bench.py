import csv
from pathlib import Path

import pytest

from preconditioned_attention.cli import main


def test_writes_csv_and_plot_and_says_that_the_gpu_part_is_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--shapes", "decode", "--dtypes", "float32", "--modes", "eager", "--seconds", "0"]
    assert main(["bench", "--output", str(tmp_path), *arguments]) == 0
    assert "GPU part is skipped" in capsys.readouterr().out
    with (tmp_path / "bench.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["candidate"] for row in rows] == ["plain", "full", "stop", "composition"]
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_unknown_names_are_user_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--shapes", "vit-x"]) == 2
    assert "unknown shape 'vit-x'" in capsys.readouterr().err
