"""The median of numbers some of which may be missing."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable


def median(values: Iterable[float]) -> float:
    """The median; NaN if there are no values or one of them is NaN."""
    numbers = list(values)
    return math.nan if not numbers or any(map(math.isnan, numbers)) else statistics.median(numbers)
