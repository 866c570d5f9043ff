import json

import pytest

from preconditioned_attention.cli import main

QUICK = ["--steps", "2", "--seeds", "0", "1", "--learning-rates", "1e-3", "--arms", "plain", "row-full"]


def test_compare_writes_a_report_and_resumes(tmp_path, capsys):
    output = ["--output", str(tmp_path / "out")]
    assert main(["compare", "digits", *QUICK, *output]) == 0
    shown = capsys.readouterr().out
    assert str(tmp_path / "out" / "report.html") in shown
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["arms"]) == ["plain", "row-full"]
    assert (results["seeds"], results["learning_rates"], results["settings"]["steps"]) == ([0, 1], [0.001], 2)
    assert main(["compare", "digits", *QUICK, *output]) == 2
    assert "already" in capsys.readouterr().err
    assert main(["compare", "digits", *QUICK, *output, "--resume"]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "unknown recipe"),
        (["digits", "--arms", "plain", "row-ful"], "row-full"),
        (["digits", "--arms", "row-full"], "arms must hold 'plain'"),
        (["digits", "--seeds", "1", "1"], "seeds"),
        (["digits", "--learning-rates", "-1"], "learning_rates"),
        (["digits", "--steps", "0"], "steps"),
        (["digits", "--resume", "--overwrite"], "give one of them"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, capsys, arguments, words):
    assert main(["compare", *arguments, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
