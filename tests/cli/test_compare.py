import json

import pytest

from preconditioned_attention.cli import main

QUICK = ["--workers", "1", "--steps", "2", "--seeds", "0", "1", "--learning-rates", "1e-3", "--arms", "plain", "row"]


def test_compare_writes_a_report_and_resumes(tmp_path, capsys):
    output = ["--output", str(tmp_path / "out")]
    assert main(["compare", "digits", *QUICK, *output]) == 0
    shown = capsys.readouterr().out
    assert str(tmp_path / "out" / "report.html") in shown
    results = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert list(results["arms"]) == ["plain", "row"]
    assert (results["seeds"], results["learning_rates"], results["settings"]["steps"]) == ([0, 1], [0.001], 2)
    assert main(["compare", "digits", *QUICK, *output]) == 2
    assert "already" in capsys.readouterr().err
    assert main(["compare", "digits", *QUICK, *output, "--resume"]) == 0


def test_a_preset_brings_its_arms_and_baselines(tmp_path, capsys):
    options = [
        "--workers",
        "1",
        "--steps",
        "2",
        "--seeds",
        "0",
        "--learning-rates",
        "1e-3",
        "--output",
        str(tmp_path / "out"),
    ]
    assert main(["compare", "listops", "--preset", "cpu", "--task-options", "count=150", "held_out=40", *options]) == 0
    results = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert list(results["arms"]) == ["plain", "pre-skip", "post-skip", "softmax"]
    assert {run["status"] for run in results["runs"]} == {"finished"}
    assert results["variants"] == {"softmax": {"attention": "softmax"}}
    assert set(results["baselines"]) == {"majority", "root operator"}
    assert (
        f"root operator {results['baselines']['root operator']:.4f}" in (tmp_path / "out" / "report.html").read_text()
    )
    assert "without a model: majority" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "unknown recipe"),
        (["digits", "--arms", "plain", "row-stopgrd"], "did you mean 'row-stopgrad'?"),
        (["digits", "--arms", "plain", "row-full"], "known: plain, row, row-stopgrad"),
        (["digits", "--arms", "row"], "arms must hold 'plain'"),
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
