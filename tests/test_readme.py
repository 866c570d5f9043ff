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


def test_the_costs_of_hooks_are_those_of_the_benchmark() -> None:
    folder = Path(__file__).parent.parent / "benchmarks" / "results"
    with (folder / "cpu-epyc-2core-composition.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["measured"] == "forward+backward"]
    ratios = [f"{float(row['ratio_p50']):.3f}" for row in rows if row["candidate"] == "composition"]
    assert len(ratios) == 4
    assert f"{', '.join(ratios[:3])} and {ratios[3]}" in README
    with (folder / "cpu-epyc-2core-imagenet.csv").open() as file:
        steps = {(row["shape"], row["candidate"]): row for row in csv.DictReader(file)}
    words = " ".join(README.split())
    for shape, name in (("vit-b", "ViT-B"), ("swin-b", "Swin-B"), ("xcit-m24", "XCiT-M24"), ("davit-b", "DaViT-B")):
        plain, *ours = (steps[f"step-{shape}", arm] for arm in ("plain", "full", "stop"))
        assert f"{name} {float(ours[0]['ratio_p50']):.3f} and {float(ours[1]['ratio_p50']):.3f}" in words
        assert all(int(row["saved_bytes"]) <= 1.001 * int(plain["saved_bytes"]) for row in ours)


def test_the_summary_is_that_of_the_comparisons() -> None:
    """Which differences are bold, what they are, and how many losses there are to speak of."""
    folder = Path(__file__).parent.parent / "docs" / "results"
    outcomes = []
    for path in sorted(folder.glob("*/results.json")):
        (line,) = [row for row in README.splitlines() if row.startswith("| [") and f"/{path.parent.name}/" in row]
        arms = json.loads(path.read_text())["arms"]
        for name in list(arms)[1:3]:
            d, decisive = arms[name]["difference"], arms[name]["outcome"] in ("better", "worse")
            texts = [f"{d['mean']:+.{k}f} ({d['low']:+.{k}f} to {d['high']:+.{k}f})" for k in (3, 4)]
            texts = [f"**{text}**" if decisive else text for text in texts]
            assert any(f"| {text.replace('-0.0000 (', '+0.0000 (')} |" in line for text in texts), (path, name)
            outcomes.append(arms[name]["outcome"])
    assert (outcomes.count("better"), outcomes.count("worse"), len(outcomes)) == (1, 3, 20)
    assert "One difference of twenty is a gain, and only just, three are losses" in README
