"""The README's code runs, and its first line of code comes early."""

import csv
import json
import re
import statistics
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize(
    "snippet", [s for s in SNIPPETS if "build_model()" not in s], ids=lambda s: s.splitlines()[-1][:40]
)
def test_snippets_run(snippet: str) -> None:
    exec(compile(snippet, "README.md", "exec"), {})


def test_the_sketch_is_a_valid_program() -> None:
    (sketch,) = [s for s in SNIPPETS if "build_model()" in s]
    compile(sketch, "README.md", "exec")


def test_the_first_runnable_line_comes_within_fifteen() -> None:
    lines = README.splitlines()
    assert lines.index("```python") < 15


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (Path(__file__).parent.parent / target).exists(), target


def test_the_numbers_are_those_of_the_results() -> None:
    folder = Path(__file__).parent.parent / "docs" / "results" / "digits"
    arms = json.loads((folder / "results.json").read_text())["arms"]
    for name, arm in arms.items():
        cells = [name, f"{arm['learning_rate']:g}", f"{statistics.mean(arm['test']):.4f}", ""]
        if name != "plain":
            difference = arm["difference"]
            cells[3] = f"{difference['mean']:+.4f} ({difference['low']:+.4f} to {difference['high']:+.4f})"
        assert f"| {' | '.join(cells)} |".replace("|  |", "| |") in README


def test_the_costs_are_those_of_the_benchmark() -> None:
    path = Path(__file__).parent.parent / "benchmarks" / "results" / "cpu-epyc-2core.csv"
    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if row["dtype"] == "float32" and row["measured"] != "forward"]
    ratios = {(row["shape"], row["mode"], row["candidate"]): f"{float(row['ratio_p50']):.3f}" for row in rows}
    for shape in ("swin-window", "vit-b", "gpt2-train", "long-1k", "step-vit-s", "step-gpt2"):
        cells = [ratios.get((shape, mode, arm), "-") for mode in ("eager", "compiled") for arm in ("full", "stop")]
        assert f"| {' | '.join(cells)} |" in README, shape
