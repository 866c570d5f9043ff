"""The numbers in docs/ are those of the comparisons in docs/results/, and the code in docs/ runs."""

import json
import re
import statistics
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats

from preconditioned_attention import check_adapter, register_prehook
from preconditioned_attention.conversion import VerificationError

DOCS = Path(__file__).parent.parent / "docs"
PAGES = "\n".join(path.read_text() for path in [*sorted(DOCS.glob("*.md")), DOCS.parent / "README.md"])
RESULTS = sorted(DOCS.glob("results/*/summary.json"))


def cells(name: str, arm: dict[str, Any], decimals: int) -> tuple[str, str]:
    """The mean of the test metric, and the difference to plain with its interval."""

    def signed(value: float) -> str:
        return f"{round(value, decimals) + 0.0:+.{decimals}f}"  # no minus zero

    mean, difference = f"{statistics.mean(arm['test']):.{decimals}f}", ""
    if name != "plain":
        d = arm["difference"]
        low_and_high = [] if d["low"] is None else [f"({signed(d['low'])} to {signed(d['high'])})"]
        difference = " ".join([signed(d["mean"]), *low_and_high])
    return mean, difference


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.parent.name)
def test_every_comparison_is_told_as_it_is(path: Path) -> None:
    rows = [re.split(r"\s*\|\s*", line.strip("| ")) for line in PAGES.splitlines() if line.startswith("| ")]
    arms = json.loads(path.read_text())["arms"]
    assert "plain" in arms
    for name, arm in arms.items():
        wanted = [{value for value in cells(name, arm, decimals) if value} for decimals in (3, 4)]
        assert any({name, *one} <= set(row) for row in rows for one in wanted), (name, wanted)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.parent.name)
def test_every_comparison_is_linked(path: Path) -> None:
    assert f"results/{path.parent.name}/" in PAGES


def test_the_table_by_learning_rate() -> None:
    """Ten seeds of DaViT at every rate, with the paired difference of row and Student's interval."""
    result = json.loads((DOCS / "results" / "digits-davit-ten-seeds" / "summary.json").read_text())
    test = {(run["arm"], run["learning_rate"], run["seed"]): run["metrics"]["test"] for run in result["runs"]}
    page = (DOCS / "vision.md").read_text()
    for rate in result["learning_rates"]:
        arms = {arm: [test[arm, rate, seed] for seed in result["seeds"]] for arm in ("plain", "row", "row-stopgrad")}
        differences = [ours - plain for ours, plain in zip(arms["row"], arms["plain"], strict=True)]
        mean = statistics.mean(differences)
        half = stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences)
        means = " | ".join(f"{statistics.mean(values):.4f}" for values in arms.values())
        assert f"| {rate:g} | {means} | {mean:+.4f} ({mean - half:+.4f} to {mean + half:+.4f}) |" in page


OWN_ATTENTION, *CLASSES = (DOCS / "own-attention.md").read_text().split("\n## ")
FAMILIES = [
    *("nanoGPT", "vit-pytorch", "segment-anything", "Informer", "Conformer", "double", "single"),
    *("Restormer", "Annotated", "PaLM", "LitGPT"),
]


def blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize("page", ["conversion.md", "inspect.md"])
def test_the_first_code_of_a_page_runs(page: str) -> None:
    exec(blocks((DOCS / page).read_text())[0], {})


def test_eleven_classes_are_told_of() -> None:
    titles = [section.splitlines()[0] for section in CLASSES]
    assert all(name in title for name, title in zip(FAMILIES, titles, strict=True))


@pytest.mark.parametrize("section", CLASSES, ids=FAMILIES)
def test_the_code_for_ones_own_attention_runs_and_its_wrong_lines_are_refused(section: str) -> None:
    torch.manual_seed(0)
    right, wrong = blocks(section)
    names: dict[str, Any] = {"__name__": "own_attention"}
    exec("\n".join([*blocks(OWN_ATTENTION), right]), names)
    assert check_adapter(names["model"], names["inputs"]).complete
    assert wrong.startswith("# Wrong\n")
    exec(wrong, names)
    with pytest.raises((VerificationError, ValueError), match=r"rows|merged entries|scaling the values of one head"):
        check_adapter(names["model"], names["inputs"])


RIGHT = {
    "nanoGPT": ("c_proj", 3, "merged"),
    "vit-pytorch": ("to_out", 4, "merged"),
    "segment-anything": ("proj", 3, "merged"),
    "Conformer": ("linear_out", 4, "merged"),
    "Restormer": ("project_out", 3, "channels"),
    "Annotated": ("linears.3", 4, "merged"),
    "PaLM": ("attn_out", 4, "merged"),
    "LitGPT": ("proj", 6, "merged"),
}


@pytest.mark.parametrize("family", RIGHT)
def test_of_all_layouts_the_right_one_alone_is_proven(family: str) -> None:
    torch.manual_seed(0)
    names: dict[str, Any] = {"__name__": "own_attention"}
    exec("\n".join([*blocks(OWN_ATTENTION), blocks(CLASSES[FAMILIES.index(family)])[0]]), names)
    model, (point, *right) = names["model"], RIGHT[family]
    layouts = [(n, form, False) for n in (1, 2, 3, 4, 6, 8) for form in ("merged", "channels", "split", "tokens")]
    proven = []
    for num_heads, form, interleaved in [*layouts, *((n, "merged", True) for n in (2, 3, 4, 6, 8))]:
        register_prehook(type(model), hook_target=point, num_heads=num_heads, form=form, interleaved=interleaved)
        with suppress(VerificationError, ValueError):
            check = check_adapter(model, names["inputs"])
            assert check.complete, "what is wrong is refused, not left open"
            proven.append((num_heads, form, interleaved))
    assert proven == [(*right, False)]


def test_the_adapter_of_the_contributing_guide_is_proven(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks((DOCS.parent / "CONTRIBUTING.md").read_text())
    exec(code, {"__name__": "contributing"})
    assert "proven: every attachment fires" in capsys.readouterr().out
