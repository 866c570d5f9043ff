"""The measurements of ``precond bench``: every shape, whole training steps, the monitor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from ..._extras import require
from .attention import Row, measure_shape
from .monitoring import measure_monitor
from .shapes import MONITORED, SHAPES, STEPS
from .steps import measure_step


def measure_all(
    shapes: Sequence[str], dtypes: Sequence[str], modes: Sequence[str], *, device: str, seconds: float
) -> Iterator[list[Row]]:
    """Measure the named shapes and yield the rows of each measurement, with a progress bar.

    Args:
        shapes: names of attention shapes, of training steps and of the monitored step.
        dtypes: names of dtypes of the attention shapes, such as ``"float32"``.
        modes: ``"eager"``, ``"compiled"`` or both, for the attention shapes.
        device: ``"cpu"`` or ``"cuda"``.
        seconds: the time per attention shape; the others take four times as long.
    """
    track = require("rich.progress", extra="train").track
    jobs = [(shape, dtype, mode) for shape in SHAPES if shape.name in shapes for dtype in dtypes for mode in modes]
    for shape, dtype, mode in track(jobs, "attention"):
        torch.compiler.reset()
        compiled = mode == "compiled"
        yield list(measure_shape(shape, getattr(torch, dtype), compiled=compiled, device=device, seconds=seconds))
    for shape in track([step for step in STEPS if step.name in shapes], "training steps"):
        yield list(measure_step(shape, device=device, seconds=4 * seconds))
    if MONITORED.name in shapes:
        yield list(measure_monitor(device=device, seconds=4 * seconds))
