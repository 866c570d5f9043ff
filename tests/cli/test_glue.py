from pathlib import Path

import pytest

from preconditioned_attention.cli import main
from preconditioned_attention.lab.tasks.masked_lm import MaskedLM
from tests.helpers.glue_tree import write_release


def test_the_table_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_release(tmp_path / "data")
    task = MaskedLM(vocab_size=300, width=8, layers=1, num_heads=1, feed_forward=8)
    task.export(task.build_model(), tmp_path / "model")
    options = ["--root", str(tmp_path / "data"), "--output", str(tmp_path / "runs"), "--trials", "1"]
    assert main(["glue", str(tmp_path / "model"), *options, "--tasks", "rte"]) == 0
    out = capsys.readouterr().out
    assert "mean of the medians" in out
    assert (tmp_path / "runs" / "glue.json").exists()
    assert main(["glue", str(tmp_path / "model"), *options, "--tasks", "wnli"]) == 2
    assert "unknown task of GLUE 'wnli'" in capsys.readouterr().err
