"""``precond support``: the table of attention classes that are converted, and how."""

from __future__ import annotations

from pathlib import Path

from .._checks import naming_source
from .._files import check_file_to_write, read_text, write_atomically


def support(*, output: Path | None = None, readme: Path | None = None) -> None:
    """Write the table of supported attention classes, taken from the registry, as Markdown.

    Args:
        output: The file to write; without it, and without a README, the table is printed. A section that `make census`
            has written into it stays.
        readme: A README whose table of libraries, between its two markers, is replaced.
    """
    from ..lab.census.support import support_page, with_support_matrix

    for file in (output, readme):
        if file is not None:
            check_file_to_write(file)
    pages = {} if output is None else {output: _kept(output)}
    if readme is not None:
        with naming_source(str(readme)):
            pages[readme] = with_support_matrix(read_text(readme))
    for path, page in pages.items():
        write_atomically(path, page)
        print(f"Written: {path}")
    if not pages:
        print(support_page())


def _kept(output: Path) -> str:
    """The page, with the section of the census that it had."""
    from ..lab.census.support import census_of, support_page

    census = census_of(read_text(output)) if output.exists() else ""
    return support_page() + (f"\n{census}" if census else "")
