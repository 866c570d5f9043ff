"""The table of a conversion's plan."""

from __future__ import annotations

from collections import defaultdict

from ...conversion import ConversionEntry, ConversionReport
from ..reporting import Table


def conversion_table(name: str, report: ConversionReport) -> Table:
    """One line per group of modules that differ only in their paths."""
    alike: dict[tuple[str, ...], list[ConversionEntry]] = defaultdict(list)
    for entry in report.entries:
        alike[entry.cells()[1:]].append(entry)
    return Table(
        title=name,
        columns=("modules", "class", "mechanism", "heads", "head dim", "status", "reason"),
        rows=tuple((_paths(entries), *cells) for cells, entries in alike.items()),
        text_columns=7,
        note=f"{len(report.converted)} of {len(report.entries)} attention modules would be converted.",
    )


def _paths(entries: list[ConversionEntry]) -> str:
    first, *others = (entry.path or "(the model itself)" for entry in entries)
    return first if not others else f"{first} and {len(others)} more"
