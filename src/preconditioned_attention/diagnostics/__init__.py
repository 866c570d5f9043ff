"""Looking: how ill-conditioned each head's output is, and what the preconditioner changes."""

from .condition import condition_number
from .entropy import attention_entropy
from .monitor import ConditionMonitor
from .ranks import effective_rank, stable_rank
from .results import Conditioning, Measure, Spectrum
from .rows import mean_direction_share, row_norm_spread
from .spectrum import singular_values

__all__ = [
    "ConditionMonitor",
    "Conditioning",
    "Measure",
    "Spectrum",
    "attention_entropy",
    "condition_number",
    "effective_rank",
    "mean_direction_share",
    "row_norm_spread",
    "singular_values",
    "stable_rank",
]
