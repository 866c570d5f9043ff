"""``precond bench``: time and memory of preconditioned attention on this machine."""

from __future__ import annotations

from pathlib import Path

from .._checks import check_known, check_number
from .._files import check_file_to_write, naming_file, write_atomically
from ..lab.benchmarking.shapes import MONITORED, SHAPES, STEPS

DTYPES = ("float32", "bfloat16", "float16")
MODES = ("eager", "compiled")
LONGEST = 3600.0  # seconds of one measurement
NAMES = tuple(shape.name for shape in (*SHAPES, *STEPS, MONITORED))


def bench(
    *,
    output: Path = Path("runs/bench"),
    shapes: tuple[str, ...] = NAMES,
    dtypes: tuple[str, ...] = DTYPES,
    modes: tuple[str, ...] = MODES,
    seconds: float = 5.0,
) -> None:
    """Measure time and memory, alternating with scaled_dot_product_attention, after checking the results.

    Args:
        output: The folder for bench.csv and bench.png.
        shapes: The attention shapes and training steps to measure.
        dtypes: The dtypes of the attention shapes; training steps are in float32.
        modes: Eager, compiled, or both.
        seconds: How long each measurement lasts; at least seven repetitions are made.
    """
    for name, values in (("shapes", shapes), ("dtypes", dtypes), ("modes", modes)):
        if not values:
            raise ValueError(f"--{name} must name at least one; leave it out for all")
    check_known("shape", shapes, NAMES)
    check_known("dtype", dtypes, DTYPES)
    check_known("mode", modes, MODES)
    check_number("seconds", seconds, maximum=LONGEST)
    with naming_file(output):
        output.mkdir(parents=True, exist_ok=True)
    for name in ("bench.csv", "bench.png"):
        check_file_to_write(output / name)
    _measure(output, shapes, dtypes, modes, seconds)
    print(f"Rows and plot: {output}")


def _measure(
    output: Path, shapes: tuple[str, ...], dtypes: tuple[str, ...], modes: tuple[str, ...], seconds: float
) -> None:
    import torch

    from ..lab.benchmarking.attention import Row
    from ..lab.benchmarking.memory import keep_memory
    from ..lab.benchmarking.report import make_plot, make_table
    from ..lab.benchmarking.results import rows_to_csv
    from ..lab.benchmarking.suite import measure_all
    from ..lab.reporting import print_table

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        print("No GPU here: the GPU part is skipped, everything is measured on the CPU.")
    allocator = keep_memory()
    rows: list[Row] = []
    for measured in measure_all(shapes, dtypes, modes, device=device, seconds=seconds):
        rows.extend(measured)
        write_atomically(output / "bench.csv", rows_to_csv(rows, allocator=allocator))  # kept if a later one fails
    if rows:
        write_atomically(output / "bench.png", make_plot(rows))
    print_table(make_table(rows))
