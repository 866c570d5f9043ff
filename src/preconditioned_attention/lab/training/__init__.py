"""One training loop: precision, processes, checkpoints, trackers, progress."""

from __future__ import annotations

from ..._environment import describe_environment
from .arms import ARMS, Arm
from .config import TrainConfig
from .errors import Interrupted, NonFiniteError, WriteError
from .loop import train
from .result import TrainResult
from .trained import load_trained

__all__ = [
    "ARMS",
    "Arm",
    "Interrupted",
    "NonFiniteError",
    "TrainConfig",
    "TrainResult",
    "WriteError",
    "describe_environment",
    "load_trained",
    "train",
]
