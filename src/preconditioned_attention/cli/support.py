"""``precond support``: which attention classes are converted, and how."""

from __future__ import annotations

from pathlib import Path

from .._files import write_atomically
from ..conversion import support_page


def support(*, output: Path | None = None) -> None:
    """Write the table of supported attention classes as Markdown, from the registry.

    Args:
        output: The file to write; without it the table is printed.
    """
    page = support_page()
    if output is None:
        print(page)
        return
    write_atomically(output, page)
    print(f"Written: {output}")
