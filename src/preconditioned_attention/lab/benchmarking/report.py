"""The table and the plot of a benchmark."""

from __future__ import annotations

from collections.abc import Sequence

from ..reporting import Ratio, Table, plot_ratios
from .attention import Row


def make_table(rows: Sequence[Row]) -> Table:
    """One line per measurement."""
    return Table(
        title="Time relative to plain attention (monitor: to none) in the same turn",
        columns=("shape", "dtype", "mode", "measured", "candidate", "ms", "p20", "p50", "p80", "saved bytes"),
        rows=tuple(
            (
                *(row.shape, row.dtype, row.mode, row.measured, row.candidate, f"{row.median_ms:.3g}"),
                *(f"{ratio:.3f}" for ratio in (row.ratio_p20, row.ratio_p50, row.ratio_p80)),
                "" if row.saved_bytes is None else f"{row.saved_bytes:,}",
            )
            for row in rows
        ),
        text_columns=5,
    )


def make_plot(rows: Sequence[Row]) -> bytes:
    """A PNG of the ratios to plain attention, and to no monitor."""
    ratios = [
        Ratio(
            label=f"{row.shape}, {row.dtype}, {row.mode}, {row.measured}",
            candidate=row.candidate,
            low=row.ratio_p20,
            middle=row.ratio_p50,
            high=row.ratio_p80,
        )
        for row in rows
        if row.candidate not in ("plain", "no monitor")
    ]
    return plot_ratios(ratios, title="Time relative to plain attention", x_label="ratio (p20, p50, p80)")
