"""``precond bench``: the price of preconditioned attention on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from rich.progress import track

from .._checks import check_known
from .._files import write_atomically
from ..lab.benchmarking import (
    MONITORED,
    SHAPES,
    STEPS,
    Row,
    keep_memory,
    measure_monitor,
    measure_shape,
    measure_step,
    rows_to_csv,
)
from ..lab.reporting import Ratio, Table, plot_ratios, print_table

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MODES = ("eager", "compiled")
NAMES = tuple(shape.name for shape in (*SHAPES, *STEPS, MONITORED))


def bench(
    *,
    output: Path = Path("runs/bench"),
    shapes: tuple[str, ...] = NAMES,
    dtypes: tuple[str, ...] = tuple(DTYPES),
    modes: tuple[str, ...] = MODES,
    seconds: float = 5.0,
) -> None:
    """Time and memory against scaled_dot_product_attention, paired and interleaved, correctness first.

    Args:
        output: The folder for bench.csv and bench.png.
        shapes: Which shapes and training steps; all by default.
        dtypes: Which dtypes of the shapes; training steps are in float32.
        modes: Eager, compiled, or both.
        seconds: How long each measurement takes turns, at least seven of them.
    """
    check_known("shape", shapes, NAMES)
    check_known("dtype", dtypes, DTYPES)
    check_known("mode", modes, MODES)
    output.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        print("No GPU here: the GPU part is skipped, everything is measured on the CPU.")
    allocator = keep_memory()
    rows: list[Row] = []
    for measured in _measurements(shapes, dtypes, modes, device, seconds):
        rows.extend(measured)
        write_atomically(
            output / "bench.csv", rows_to_csv(rows, allocator=allocator)
        )  # what is measured is kept, whatever comes
    if rows:
        (output / "bench.png").write_bytes(_plot(rows))
    print_table(_table(rows))
    print(f"Rows and plot: {output}")


def _measurements(
    shapes: tuple[str, ...], dtypes: tuple[str, ...], modes: tuple[str, ...], device: str, seconds: float
) -> Iterator[list[Row]]:
    jobs = [(s, d, m) for s in SHAPES if s.name in shapes for d in dtypes for m in modes]
    for shape, dtype, mode in track(jobs, "attention"):
        torch.compiler.reset()
        compiled = mode == "compiled"
        yield list(measure_shape(shape, DTYPES[dtype], compiled=compiled, device=device, seconds=seconds))
    for shape in track([s for s in STEPS if s.name in shapes], "training steps"):
        yield list(measure_step(shape, device=device, seconds=4 * seconds))
    if MONITORED.name in shapes:
        yield list(measure_monitor(device=device, seconds=4 * seconds))


def _table(rows: list[Row]) -> Table:
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


def _plot(rows: list[Row]) -> bytes:
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
