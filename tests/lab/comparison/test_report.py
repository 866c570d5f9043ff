import dataclasses
import json
import re
from html.parser import HTMLParser

import matplotlib.image
import pytest

from preconditioned_attention.lab.comparison import Comparison, RunKey, compare
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


def test_results_hold_every_run_and_every_number(comparison):
    results = json.loads((comparison.output / "results.json").read_text(), parse_constant=pytest.fail)
    assert results["title"] == "A & B"
    assert results["settings"] == {"steps": 40, "model": {"depth": 2}}
    assert len(results["runs"]) == 27
    by_name = {(entry["arm"], entry["seed"], entry["learning_rate"]): entry for entry in results["runs"]}
    failed = by_name["row-stopgrad", 2, 1e-2]
    assert (failed["status"], failed["reason"], failed["metrics"]) == ("failed", "MemoryError: out of <memory>", None)
    record = by_name["row", 1, 1e-3]
    metrics = comparison.records[RunKey(1, 1e-3, "row")].metrics
    expected = json.loads(json.dumps(metrics.to_dict()))
    assert expected.pop("pictures") == {}  # they stay in the run's own file
    assert record["metrics"] == expected
    assert record["metrics"]["extra"] == {"remark": "kept"}
    assert len(record["weights"][0]) == len(record["random_states"][0]) == 64
    full = results["arms"]["row"]
    assert full["config"]["gradient"] == "full"
    assert full["outcome"] == "better"
    assert full["difference"]["values"] == pytest.approx([0.02, 0.021, 0.022])
    assert full["rates"][1]["mean"] == pytest.approx(0.932)
    assert results["environment"]["packages"]["torch"]
    assert results["environment"]["cpu"]


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


def test_the_page_is_self_contained(comparison):
    text = comparison.report.read_text()
    addresses = TextOf(text).addresses
    assert len(addresses) == 7
    assert all(address.startswith("data:image/png;base64,") for address in addresses)
    assert not re.search(r"https?://|//cdn|@import|url\(", text)


def test_plots_beside_the_page_are_pictures(comparison):
    plots = sorted(comparison.output.glob("plot-*.png"))
    assert len(plots) == 7
    for plot in plots:
        assert min(matplotlib.image.imread(plot).shape[:2]) > 300


def test_no_path_of_the_machine_is_published(comparison):
    for name in ("results.json", "report.html"):
        text = (comparison.output / name).read_text()
        assert str(comparison.output) not in text
        assert __file__ not in text


def test_summaries_are_unchangeable(comparison):
    with pytest.raises(dataclasses.FrozenInstanceError):
        comparison.summaries["plain"].learning_rate = 1.0
