from pathlib import Path

import pytest

from preconditioned_attention.cli import main
from preconditioned_attention.lab.comparison import compare
from tests.helpers.synthetic_runs import run


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    compare(run, output=folder, learning_rates=(1e-3,), seeds=(0, 1), verbose=False)
    return folder


def test_the_report_of_a_comparison_is_written_again(comparison: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (comparison / "report.html").read_bytes()
    (comparison / "report.html").unlink()
    assert main(["report", str(comparison)]) == 0
    shown = capsys.readouterr().out
    assert "row: " in shown
    assert f"Report: {comparison / 'report.html'}" in shown
    assert (comparison / "report.html").read_bytes() == page


def test_several_folders_and_what_is_missing(
    comparison: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [str(path) for path in (comparison / "runs").iterdir() if path.name != "row-seed1-lr0.001"]
    assert main(["report", *folders, "--output", str(tmp_path / "report")]) == 0
    assert "1 run has not ended yet: row-seed1-lr0.001" in " ".join(capsys.readouterr().out.split())
    assert main(["report", *folders, "--output", str(tmp_path / "report")]) == 2
    assert "--overwrite replaces them" in capsys.readouterr().err
    assert main(["report", *folders, "--output", str(tmp_path / "report"), "--overwrite"]) == 0


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"precond: {tmp_path} holds no run")
    assert shown.count("\n") == 1
