"""Modules to build models with: attention layers, and the `Preconditioner` that they contain."""

from .channel_group import ChannelGroupAttention
from .cross_covariance import CrossCovarianceAttention
from .linear import LinearAttention
from .multihead import MultiheadAttention
from .nystrom import NystromAttention
from .preconditioner import Preconditioner
from .window import WindowAttention

__all__ = [
    "ChannelGroupAttention",
    "CrossCovarianceAttention",
    "LinearAttention",
    "MultiheadAttention",
    "NystromAttention",
    "Preconditioner",
    "WindowAttention",
]
