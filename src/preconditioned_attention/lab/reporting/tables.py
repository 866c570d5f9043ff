"""Tables for the terminal and for HTML pages."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..._extras import require

if TYPE_CHECKING:
    from rich.console import Console

MISSING = "–"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of strings.

    Args:
        title: what the table shows.
        columns: the header.
        rows: one string per column each.
        text_columns: the number of leading columns with text, aligned left; the others are aligned right.
        note: a remark below the table.

    Raises:
        ValueError: a row has another number of cells than the header.
    """

    kind: ClassVar[str] = "table"
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: int = 1
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"rows must have {len(self.columns)} cells, as columns does; got {row!r}")


def decimals_for(values: Iterable[float], *, digits: int = 4) -> int:
    """The number of decimals (0 to 8) that shows the largest finite value with ``digits`` significant digits."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    if largest == 0.0:
        return digits
    return min(8, max(0, digits - 1 - math.floor(math.log10(largest))))


def format_number(value: float | None, decimals: int | None = None, *, sign: bool = False) -> str:
    """``value`` as text: fixed ``decimals``, or four significant digits when None; an en dash for a missing value."""
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    text = f"{value:.4g}" if decimals is None else f"{value:.{decimals}f}"
    if float(text) == 0:
        return text.lstrip("-")
    return "+" + text if sign and value > 0 else text.replace("-", "−", 1) if value < 0 else text


def print_table(table: Table, console: Console | None = None) -> None:
    """Print ``table`` on the terminal (``rich``, extra ``train``)."""
    rich_table = require("rich.table", extra="train")
    box = require("rich.box", extra="train")
    text = require("rich.text", extra="train")
    target = console if console is not None else require("rich.console", extra="train").Console()
    if not target.is_terminal:
        # Without a terminal rich assumes 80 columns and would break cells.
        target.width = max(target.width, 120)
    shown = rich_table.Table(
        title=text.Text(table.title), caption=text.Text(table.note), box=box.SIMPLE_HEAD, title_justify="left"
    )
    for index, column in enumerate(table.columns):
        shown.add_column(text.Text(column), justify="left" if index < table.text_columns else "right")
    for row in table.rows:
        shown.add_row(*(text.Text(cell) for cell in row))
    target.print(shown)
