"""One training loop: precision, processes, checkpoints, trackers, progress."""

from __future__ import annotations

from .arms import ARMS
from .config import TrainConfig
from .environment import describe_environment
from .errors import NonFiniteError, WriteError
from .loop import train
from .result import TrainResult

__all__ = ["ARMS", "NonFiniteError", "TrainConfig", "TrainResult", "WriteError", "describe_environment", "train"]
