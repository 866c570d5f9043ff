from pathlib import Path

import pytest

from preconditioned_attention.conversion import support_page
from preconditioned_attention.conversion.support import supported_classes, with_support_matrix

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "support.md"


def sections(page: str) -> dict[str, str]:
    """Library -> its part of the page."""
    return {part.partition("\n")[0]: part for part in page.split("\n## ")[1:]}


def test_the_page_in_the_docs_is_fresh() -> None:
    """Every library that is installed here is compared. When this fails: precond support --output docs/support.md"""
    written, now = sections(PAGE.read_text()), sections(support_page())
    assert {"timm", "torch", "torchvision", "transformers"} <= set(now)
    for library, part in now.items():
        assert written[library].strip() == part.strip()


def matrix_rows(text: str) -> dict[str, str]:
    """Library -> its line of the matrix."""
    return {line.split()[1]: line for line in text.splitlines() if line.startswith("|") and line.count("|") == 6}


def test_the_matrix_in_the_readme_is_fresh() -> None:
    """When this fails: precond support --readme README.md"""
    text = (ROOT / "README.md").read_text()
    written, now = matrix_rows(text), matrix_rows(with_support_matrix(text))
    assert {library: written[library] for library in now} == now
    assert {"timm", "torch", "torchvision", "transformers"} <= set(now)


def test_a_text_without_the_markers() -> None:
    with pytest.raises(ValueError, match="must hold the lines"):
        with_support_matrix("# A README")


def test_classes_that_look_their_attention_up_are_listed() -> None:
    rows = {row.name: row for row in supported_classes() if row.library == "transformers"}
    assert rows["models.bert.modeling_bert.BertSelfAttention"].mechanism == "attention interface"
    refused = rows["models.diffllama.modeling_diffllama.DiffLlamaAttention"]
    assert (refused.status, refused.mechanism) == ("refused", "")
    assert "differential" in refused.remark


@pytest.mark.parametrize(
    ("name", "status", "option"),
    [
        ("layers.attention.Attention", "converted", ""),
        ("models.cait.ClassAttn", "converted", "class_attention"),
        ("models.xcit.XCA", "converted", ""),
        ("models.mobilevit.LinearSelfAttention", "refused", ""),
    ],
)
def test_what_it_says_of_some_classes(name: str, status: str, option: str) -> None:
    (row,) = [row for row in supported_classes() if (row.library, row.name) == ("timm", name)]
    assert (row.status, row.option) == (status, option)
    assert row.remark or status == "converted"
