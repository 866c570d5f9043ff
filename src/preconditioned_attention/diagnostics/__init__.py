"""Condition numbers and related measures of every head's output, and a monitor that records them in a model."""

from .condition import condition_number
from .entropy import attention_entropy
from .explanation import explain
from .monitor import ConditionMonitor
from .monitor_config import MonitorConfig
from .monitor_file import merge_records, read_records
from .monitor_jacobian import jacobian_kappa
from .monitor_records import Observation, Record
from .ranks import effective_rank, stable_rank
from .results import Conditioning, Measure, Spectrum
from .rows import mean_direction_share, row_norm_spread
from .spectrum import singular_values

__all__ = [
    "ConditionMonitor",
    "Conditioning",
    "Measure",
    "MonitorConfig",
    "Observation",
    "Record",
    "Spectrum",
    "attention_entropy",
    "condition_number",
    "effective_rank",
    "explain",
    "jacobian_kappa",
    "mean_direction_share",
    "merge_records",
    "read_records",
    "row_norm_spread",
    "singular_values",
    "stable_rank",
]
