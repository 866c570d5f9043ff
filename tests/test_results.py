"""The tables of docs/results.md are those of the files in docs/results/ and benchmarks/results/."""

import csv
import gzip
import json
import re
import statistics
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
BENCHMARKS = ROOT / "benchmarks" / "results"
PAGE = RESULTS.with_suffix(".md").read_text()
WORDS = " ".join(PAGE.split())


def arms_of(folder: Path) -> dict[str, dict[str, Any]]:
    arms: dict[str, dict[str, Any]] = json.loads((folder / "summary.json").read_text())["arms"]
    return arms


def rows_of(name: str) -> list[dict[str, str]]:
    with (BENCHMARKS / name).open() as file:
        return list(csv.DictReader(file))


def test_the_table_of_digits() -> None:
    for name, arm in arms_of(RESULTS / "digits").items():
        cells = [name, f"{arm['learning_rate']:g}", f"{statistics.mean(arm['test']):.4f}", ""]
        if name != "plain":
            difference = arm["difference"]
            cells[3] = f"{difference['mean']:+.4f} ({difference['low']:+.4f} to {difference['high']:+.4f})"
        assert f"| {' | '.join(cells)} |".replace("|  |", "| |") in PAGE


def test_the_summary_is_that_of_the_comparisons() -> None:
    """Which differences are bold, what they are, and how many gains and losses there are."""
    outcomes = []
    for folder in sorted(path.parent for path in RESULTS.glob("*/summary.json")):
        (line,) = [row for row in PAGE.splitlines() if row.startswith("| [") and f"/{folder.name}/" in row]
        arms = arms_of(folder)
        for name in list(arms)[1:3]:
            d, decisive = arms[name]["difference"], arms[name]["outcome"] in ("better", "worse")
            texts = [f"{d['mean']:+.{k}f} ({d['low']:+.{k}f} to {d['high']:+.{k}f})" for k in (3, 4)]
            texts = [f"**{text}**" if decisive else text for text in texts]
            assert any(f"| {text.replace('-0.0000 (', '+0.0000 (')} |" in line for text in texts), (folder, name)
            outcomes.append(arms[name]["outcome"])
    gains, losses = outcomes.count("better"), outcomes.count("worse")
    assert (gains, losses, len(outcomes)) == (1, 3, 20)
    inconclusive = len(outcomes) - gains - losses
    assert f"20 differences to plain attention, 1 is a gain, 3 are losses, and {inconclusive} are inconclusive" in WORDS


def test_the_costs_are_those_of_the_benchmark() -> None:
    rows = [row for row in rows_of("cpu-epyc-2core.csv") if row["dtype"] == "float32" and row["measured"] != "forward"]
    ratios = {(row["shape"], row["mode"], row["candidate"]): f"{float(row['ratio_p50']):.3f}" for row in rows}
    for shape in ("swin-window", "vit-b", "gpt2-train", "long-1k", "step-vit-s", "step-gpt2"):
        cells = [ratios.get((shape, mode, arm), "-") for mode in ("eager", "compiled") for arm in ("full", "stop")]
        assert f"| {' | '.join(cells)} |" in PAGE, shape


def test_the_costs_of_hooks() -> None:
    rows = [row for row in rows_of("cpu-epyc-2core-composition.csv") if row["measured"] == "forward+backward"]
    ratios = [f"{float(row['ratio_p50']):.3f}" for row in rows if row["candidate"] == "composition"]
    assert len(ratios) == 4
    assert f"{', '.join(ratios[:3])} and {ratios[3]}" in PAGE


def test_the_costs_of_whole_training_steps() -> None:
    steps = {(row["shape"], row["candidate"]): row for row in rows_of("cpu-epyc-2core-imagenet.csv")}
    for shape, name in (("vit-b", "ViT-B"), ("swin-b", "Swin-B"), ("xcit-m24", "XCiT-M24"), ("davit-b", "DaViT-B")):
        plain, *ours = (steps[f"step-{shape}", arm] for arm in ("plain", "full", "stop"))
        assert f"{name} {float(ours[0]['ratio_p50']):.3f} and {float(ours[1]['ratio_p50']):.3f}" in WORDS
        assert all(int(row["saved_bytes"]) <= 1.001 * int(plain["saved_bytes"]) for row in ours)


def test_gpt2_measured_again() -> None:
    rows = [row for row in rows_of("cpu-epyc-2core-gpt2.csv") if row["measured"] == "forward+backward"]
    ratios = {row["candidate"]: f"{float(row['ratio_p50']):.3f}" for row in rows}
    assert f"{ratios['full']} with the full and {ratios['stop']} with the stopped gradient" in WORDS


def test_the_costs_of_the_monitor() -> None:
    rows = rows_of("cpu-epyc-2core-monitor.csv")
    added = {(row["measured"], row["candidate"]): 100 * (float(row["ratio_p50"]) - 1) for row in rows}
    plain, full = (f"training step, {arm}" for arm in ("plain", "full"))
    assert f"adds {added[plain, 'every=50']:.1f} % (plain model) and {added[full, 'every=50']:.1f} % (conv" in WORDS
    assert f"every step adds {added[plain, 'every=1']:.0f} % and {added[full, 'every=1']:.0f} %" in WORDS


def test_the_results_are_small_and_whole() -> None:
    files = [path for path in RESULTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 6_000_000
    for folder in filter(Path.is_dir, RESULTS.iterdir()):
        summary = json.loads((folder / "summary.json").read_text())
        runs = json.loads(gzip.decompress((folder / "runs.json.gz").read_bytes()))
        assert [(run["arm"], run["seed"], run["learning_rate"]) for run in runs] == [
            (run["arm"], run["seed"], run["learning_rate"]) for run in summary["runs"]
        ]
        linked = re.findall(r'src="([^"]*)"', (folder / "report.html").read_text())
        assert sorted(linked) == sorted(path.name for path in folder.glob("*.png"))
        names = {"summary.json", "runs.json.gz", "report.html", *linked}
        assert {path.name for path in folder.iterdir()} == names
