import dataclasses
import gzip
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest

from preconditioned_attention.lab.comparison import Comparison, Plan, RunKey, compare
from preconditioned_attention.lab.comparison.records import RunRecord, to_json
from preconditioned_attention.lab.comparison.report import build_comparison, write_report
from preconditioned_attention.lab.reporting import Picture
from preconditioned_attention.lab.training import Arm
from tests.helpers.synthetic_runs import ARMS, run


class TextOf(HTMLParser):
    """The text of a page, and the addresses it names."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "action")]

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory) -> Comparison:
    def fails_once(prepare, seed, learning_rate):
        if prepare.arm == ARMS["row-stopgrad"] and (seed, learning_rate) == (2, 1e-2):
            raise MemoryError("out of <memory>")
        return run(prepare, seed, learning_rate)

    return compare(
        fails_once,
        learning_rates=(1e-4, 1e-3, 1e-2),
        output=tmp_path_factory.mktemp("comparison"),
        title="A & B",
        settings={"steps": 40, "model": {"depth": 2}},
        verbose=False,
    )


def read_runs(folder: Path) -> dict[tuple[str, int, float], dict[str, Any]]:
    text = gzip.decompress((folder / "runs.json.gz").read_bytes())
    runs = json.loads(text, parse_constant=pytest.fail)
    return {(run["arm"], run["seed"], run["learning_rate"]): run for run in runs}


def test_the_summary_holds_the_results_of_every_arm_and_run(comparison):
    summary = json.loads((comparison.output / "summary.json").read_text(), parse_constant=pytest.fail)
    assert summary["title"] == "A & B"
    assert summary["settings"] == {"steps": 40, "model": {"depth": 2}}
    full = summary["arms"]["row"]
    assert full["config"]["gradient"] == "full"
    assert full["outcome"] == "better"
    assert full["difference"]["values"] == pytest.approx([0.02, 0.021, 0.022])
    assert full["rates"][1]["mean"] == pytest.approx(0.932)
    assert full["conditioning"]["end"]["blocks.1.attn"] == {
        "kappa_before": 101.0,
        "kappa_after": 71.0,
        "spread_before": 0.26,
        "spread_after": 0.0,
    }
    assert summary["environment"]["packages"]["torch"]
    assert summary["environment"]["cpu"]
    runs = read_runs(comparison.output)
    assert len(summary["runs"]) == len(runs) == 27
    for short in summary["runs"]:
        run = runs[short["arm"], short["seed"], short["learning_rate"]]
        names = ("validation", "test", "seconds_per_step")
        assert short == run | {"metrics": run["metrics"] and {name: run["metrics"][name] for name in names}}


def test_the_runs_hold_every_number(comparison):
    runs = read_runs(comparison.output)
    failed = runs["row-stopgrad", 2, 1e-2]
    assert (failed["status"], failed["reason"], failed["metrics"]) == ("failed", "MemoryError: out of <memory>", None)
    run = runs["row", 1, 1e-3]
    metrics = comparison.records[RunKey(1, 1e-3, "row")].metrics
    expected = json.loads(json.dumps(metrics.to_dict()))
    assert expected.pop("pictures") == {}  # they stay in the run's own file
    assert run["metrics"] == expected
    assert run["metrics"]["extra"] == {"remark": "kept"}
    assert len(run["weights"][0]) == len(run["random_states"][0]) == 64


def test_writing_again_writes_the_same_bytes(comparison):
    before = {path: path.read_bytes() for path in comparison.output.iterdir() if path.is_file()}
    write_report(comparison)
    assert {path: path.read_bytes() for path in comparison.output.iterdir() if path.is_file()} == before


def test_files_of_an_earlier_report_are_removed(comparison):
    before = sorted(comparison.output.iterdir())
    for name in ("results.json", "plot-kappa-initialisation.png", "picture-confusion-row-full.png"):
        (comparison.output / name).write_text("x")
    write_report(comparison)
    assert sorted(comparison.output.iterdir()) == before


def test_the_page_holds_the_numbers_of_every_table(comparison):
    text = " ".join(TextOf(comparison.report.read_text()).words)
    for name, summary in comparison.summaries.items():
        for rate in summary.rates:
            assert f"{rate.learning_rate:g}" in text
            if rate.mean is not None:
                assert f"{rate.mean:.4f}" in text
        for value in (*summary.test, *summary.validation, sum(summary.test) / 3):
            assert f"{value:.4f}" in text
        if summary.difference is not None:
            for value in (summary.difference.low, summary.difference.high, *summary.difference.values):
                assert f"{abs(value):.4f}" in text
            ratio = summary.time_ratio
            assert f"{ratio.mean:.2f} ({ratio.low:.2f} to {ratio.high:.2f})" in text
        for step in summary.steps:
            assert ("not reached" if step is None else f"{step}") in text
        for sentence in comparison.verdicts[name].sentences:
            assert sentence in text
    for number in ("101", "71", "0.2600"):
        assert f" {number} " in re.sub(r"\s+", " ", text)


def test_the_page_holds_failures_settings_and_versions(comparison):
    text = " ".join(TextOf(comparison.report.read_text()).words)
    assert "MemoryError: out of <memory>" in text
    assert "model.depth" in text
    assert "packages.torch" in text
    assert 'gradient="stop"' in text
    assert "How to read this" in text
    assert "A & B" in text


def test_the_page_links_the_pictures_beside_it_and_nothing_else(comparison):
    text = comparison.report.read_text()
    addresses = TextOf(text).addresses
    assert len(addresses) == 7
    assert sorted(addresses) == sorted(path.name for path in comparison.output.glob("*.png"))
    assert not re.search(r"https?://|//cdn|@import|url\(|data:", text)
    assert "send the folder" in text


def test_plots_beside_the_page_are_pictures(comparison):
    plots = sorted(comparison.output.glob("plot-*.png"))
    assert len(plots) == 7
    for plot in plots:
        assert min(matplotlib.image.imread(plot).shape[:2]) > 300


def test_pictures_of_the_first_seed_are_beside_the_page(tmp_path):
    def pictured(prepare, seed, learning_rate):
        picture = Picture(f"{prepare.arm} {seed}".encode(), "a dot", "The dot.")
        return {**run(prepare, seed, learning_rate), "pictures": {"dot": picture}}

    compare(pictured, learning_rates=(1e-3,), output=tmp_path, verbose=False)
    assert (tmp_path / "picture-dot-row.png").read_bytes() == f"{ARMS['row']} 0".encode()
    assert len(list(tmp_path.glob("picture-*"))) == 3
    assert "picture-dot-row-stopgrad.png" in TextOf((tmp_path / "report.html").read_text()).addresses


def test_no_path_of_the_machine_is_published(comparison):
    for name in ("summary.json", "report.html", "runs.json.gz"):
        content = (comparison.output / name).read_bytes()
        text = (gzip.decompress(content) if name.endswith(".gz") else content).decode()
        assert str(comparison.output) not in text
        assert __file__ not in text


def test_summaries_are_unchangeable(comparison):
    with pytest.raises(dataclasses.FrozenInstanceError):
        comparison.summaries["plain"].learning_rate = 1.0


RESULTS = Path(__file__).parents[3] / "docs" / "results"


def published(folder: Path) -> tuple[dict[str, Any], Comparison]:
    """A summary in docs/results, and the comparison of its runs, computed again."""
    summary = json.loads((folder / "summary.json").read_text())
    runs = json.loads(gzip.decompress((folder / "runs.json.gz").read_bytes()))
    configs = {name: arm["config"] for name, arm in summary["arms"].items()}
    names = ("seeds", "learning_rates", "metric", "higher_is_better", "settings", "variants", "baselines")
    arms = {name: None if config is None else Arm.from_dict(config) for name, config in configs.items()}
    plan = Plan(arms=arms, **{name: summary[name] for name in names})
    records = {}
    for one in runs:
        key = RunKey(one.pop("seed"), one.pop("learning_rate"), one.pop("arm"))
        metrics = one["metrics"] and {**one["metrics"], "pictures": {}}
        record = {**one, "metrics": metrics, "traceback": None, "description": plan.describe(key)}
        records[key] = RunRecord.from_dict(record)
    return summary, build_comparison(plan, records, title=summary["title"], output=folder)


@pytest.mark.parametrize("name", sorted(path.name for path in RESULTS.iterdir() if path.is_dir()))
def test_the_published_results_are_those_of_their_runs(name):
    summary, comparison = published(RESULTS / name)
    again = json.loads(to_json(comparison.to_dict()))
    assert set(again) == set(summary)
    assert_close(again["arms"], summary["arms"])
    assert again["runs"] == summary["runs"]


def assert_close(one: Any, other: Any) -> None:
    """Equal, numbers up to rounding: SciPy's version decides the last digit of an interval."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_close(one[key], other[key])
    elif isinstance(one, list):
        for first, second in zip(one, other, strict=True):
            assert_close(first, second)
    else:
        assert one == (pytest.approx(other, rel=1e-9, abs=1e-12) if isinstance(one, float) else other)
