"""Looking: how ill-conditioned each head's output is, and what the preconditioner changes."""

from .condition import condition_number, row_norm_spread
from .monitor import ConditionMonitor

__all__ = ["ConditionMonitor", "condition_number", "row_norm_spread"]
