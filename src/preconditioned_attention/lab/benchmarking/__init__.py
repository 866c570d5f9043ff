"""Paired measurement of time and memory against plain attention."""

from .attention import Row, measure_shape
from .correctness import WrongResultError, check_result
from .memory import keep_memory, saved_bytes
from .monitoring import MONITORED, measure_monitor
from .results import rows_to_csv
from .shapes import SHAPES, Shape
from .steps import STEPS, measure_step
from .timing import Timing, time_against_first, time_paired

__all__ = [
    "MONITORED",
    "SHAPES",
    "STEPS",
    "Row",
    "Shape",
    "Timing",
    "WrongResultError",
    "check_result",
    "keep_memory",
    "measure_monitor",
    "measure_shape",
    "measure_step",
    "rows_to_csv",
    "saved_bytes",
    "time_against_first",
    "time_paired",
]
