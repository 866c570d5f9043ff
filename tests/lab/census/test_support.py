import importlib
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from preconditioned_attention.conversion.registry import registered_adapters
from preconditioned_attention.lab.census import support
from preconditioned_attention.lab.census.catalog import attention_classes
from preconditioned_attention.lab.census.support import (
    MATRIX_BEGINS,
    MATRIX_ENDS,
    census_of,
    support_page,
    supported_classes,
    with_census,
    with_support_matrix,
)

ROOT = Path(__file__).parents[3]
PAGE, README = ROOT / "docs" / "support.md", ROOT / "README.md"


@pytest.fixture
def registered_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking at every class of transformers takes a while."""
    monkeypatch.setattr(support, "_look_ups", lambda: ())


def sections(page: str) -> dict[str, str]:
    """Library -> its part of the page."""
    return {part.partition("\n")[0]: part for part in page.split("\n## ")[1:]}


def matrix_rows(text: str) -> dict[str, str]:
    """Library -> its line of the matrix."""
    lines = text.partition(MATRIX_BEGINS)[2].partition(MATRIX_ENDS)[0].splitlines()
    return {line.split()[1]: line for line in lines[3:]}


@pytest.mark.usefixtures("registered_only")
def test_the_page_in_the_docs_is_fresh() -> None:
    """When this or the next fails: precond support --output docs/support.md --readme README.md"""
    written, now = sections(PAGE.read_text()), sections(support_page())
    now.pop("tests", None)  # what other tests have registered in this process
    assert {"timm", "torch", "torchvision", "transformers"} <= set(now)
    registered = now.pop("transformers").splitlines()[3:]
    assert set(registered) <= set(written["transformers"].splitlines())
    for library, part in now.items():
        assert written[library].strip() == part.strip()


@pytest.mark.usefixtures("registered_only")
def test_the_matrix_in_the_readme_is_fresh() -> None:
    written, now = matrix_rows(README.read_text()), matrix_rows(with_support_matrix(README.read_text()))
    del now["transformers"]
    now.pop("tests", None)  # what other tests have registered in this process
    assert {"timm", "torch", "torchvision"} <= set(now)
    assert {library: written[library] for library in now} == now


@pytest.mark.slow
def test_what_is_written_of_transformers_is_fresh() -> None:
    assert sections(PAGE.read_text())["transformers"].strip() == sections(support_page())["transformers"].strip()
    text = README.read_text()
    assert matrix_rows(text)["transformers"] == matrix_rows(with_support_matrix(text))["transformers"]


def test_the_census_is_the_last_section_and_is_written_anew() -> None:
    page = "# What is supported\n\n## torch\n\n| class |\n"
    once = with_census(page, "| one |")
    assert once.startswith(page)
    assert "| one |" in census_of(once)
    assert with_census(once, "| two |") == with_census(page, "| two |")
    assert census_of(page) == ""
    assert once.removesuffix(census_of(once)).rstrip() == page.rstrip()


def test_the_census_in_the_docs_misses_at_most_two_percent() -> None:
    text = census_of(PAGE.read_text())
    packages = [line.split(" | ")[0].strip("| ") for line in text.splitlines() if line.startswith("| ")][1:]
    assert len(packages) >= 12
    assert set(packages) >= {"vit-pytorch", "x-transformers", "monai", "torch-geometric", "torchtune", "litgpt"}
    assert set(packages) >= {"speechbrain", "segment-anything-py", "torchaudio", "open_clip_torch", "timm", "diffusers"}
    seen, missed = map(int, re.search(r"(\d+) classes were seen .* missed (\d+) of them", text, re.DOTALL).groups())
    assert missed <= 0.02 * seen
    assert "\n0 classes that are named after attention were found by neither" in text.replace(". ", ".\n")


def test_a_text_without_the_markers() -> None:
    with pytest.raises(ValueError, match="must hold the lines"):
        with_support_matrix("# A README")


def test_classes_that_look_their_attention_up_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    files = (f"transformers.models.{name}.modeling_{name}" for name in ("bert", "diffllama"))
    found = [entry for file in files for entry in attention_classes(file) if entry.looks_up]
    monkeypatch.setattr(support, "_look_ups", lambda: tuple(found))
    rows = {row.name: row for row in supported_classes() if row.library == "transformers"}
    assert rows["models.bert.modeling_bert.BertSelfAttention"].mechanism == "attention interface"
    refused = rows["models.diffllama.modeling_diffllama.DiffLlamaAttention"]
    assert (refused.status, refused.mechanism) == ("refused", "")
    assert "differential" in refused.remark


@pytest.mark.parametrize(
    ("name", "status", "include"),
    [
        ("layers.attention.Attention", "converted", ""),
        ("models.cait.ClassAttn", "converted", "class_attention"),
        ("models.xcit.XCA", "converted", ""),
        ("models.mobilevit.LinearSelfAttention", "refused", ""),
    ],
)
@pytest.mark.usefixtures("registered_only")
def test_what_it_says_of_some_classes(name: str, status: str, include: str) -> None:
    (row,) = [row for row in supported_classes() if (row.library, row.name) == ("timm", name)]
    assert (row.status, row.include) == (status, include)
    assert row.remark or status == "converted"


@pytest.mark.usefixtures("registered_only")
def test_an_adapter_of_a_library_that_is_not_installed_is_left_out() -> None:
    """Also where something has registered it, as the tests of flash-attn do."""
    importlib.import_module("preconditioned_attention.conversion.adapters.flash_attn.tables")
    assert any(name.startswith("flash_attn.") for name, _ in registered_adapters())
    expected = find_spec("flash_attn") is not None
    assert any(row.library == "flash_attn" for row in supported_classes()) == expected
