"""Inequalities on condition numbers, evaluated with their assumptions, and the optimal row scaling."""

from .attention_bounds import (
    linear_attention_bound,
    linear_attention_head_bound,
    softmax_attention_bound,
    softmax_attention_head_bound,
)
from .inequality import Assumption, Inequality
from .scaling import RowScaling, optimal_row_scaling
from .van_der_sluis import row_equilibration_bound

__all__ = [
    "Assumption",
    "Inequality",
    "RowScaling",
    "linear_attention_bound",
    "linear_attention_head_bound",
    "optimal_row_scaling",
    "row_equilibration_bound",
    "softmax_attention_bound",
    "softmax_attention_head_bound",
]
