"""The README's code runs, its first line of code comes early, and its numbers are those of docs/results.md."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def is_sketch(snippet: str) -> bool:
    """Whether it leaves out what is the reader's own."""
    return "build_model()" in snippet


@pytest.mark.parametrize("snippet", [s for s in SNIPPETS if not is_sketch(s)], ids=lambda s: s.splitlines()[-1][:40])
def test_snippets_run(snippet: str) -> None:
    exec(compile(snippet, "README.md", "exec"), {})


@pytest.mark.parametrize("page", ["README.md", "docs/commands.md"])
def test_the_sketch_is_a_valid_program(page: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    for sketch in filter(is_sketch, blocks):
        compile(sketch, page, "exec")


def test_the_first_runnable_line_comes_within_fifteen() -> None:
    lines = README.splitlines()
    assert lines.index("```python") < 15


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    for target, anchor in re.findall(r"\]\(([^)#]*)(#[^)]*)?\)", text):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert target.startswith("https://") or path.exists(), target
        if anchor and path.suffix == ".md":
            assert anchor[1:] in anchors(path.read_text()), (target, anchor)


def anchors(text: str) -> set[str]:
    """The names by which a page's headings are linked."""
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_numbers_are_those_of_the_results_page() -> None:
    """Every interval and every relative time, which tests/test_docs.py compares with the files."""
    results = (ROOT / "docs" / "results.md").read_text()
    for number in re.findall(r"[-+]\d\.\d+ \([-+]\d\.\d+ to [-+]\d\.\d+\)|\b[01]\.\d{3,4}\b", README):
        assert number in results, number
