from pathlib import Path

import pytest

from preconditioned_attention.conversion import support_page
from preconditioned_attention.conversion.support import supported_classes

PAGE = Path(__file__).parents[2] / "docs" / "support.md"


def sections(page: str) -> dict[str, str]:
    """Library -> its part of the page."""
    return {part.partition("\n")[0]: part for part in page.split("\n## ")[1:]}


def test_the_page_in_the_docs_is_fresh() -> None:
    """Every library that is installed here is compared. When this fails: precond support --output docs/support.md"""
    written, now = sections(PAGE.read_text()), sections(support_page())
    assert {"timm", "torch", "torchvision", "transformers"} <= set(now)
    for library, part in now.items():
        assert written[library].strip() == part.strip()


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
