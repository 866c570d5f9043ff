"""The ``prepare`` argument of a run: applies the arm, and hashes initial weights and random state."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from ..._environment import describe_machine
from ..training.arms import Arm
from ..training.initial_state import hash_random_state, hash_weights, preserve_random_state

ModelT = TypeVar("ModelT", bound=nn.Module)


class FairnessError(RuntimeError):
    """Two arms had different initial states, or an arm was never applied, so the comparison is invalid."""


class Prepare:
    """A callable that applies the arm to a new model in place and returns the model.

    It records a hash of the model before the arm is applied, and the machine, and leaves the global random state
    unchanged, so that
    batches and dropout masks are the same in every arm.

    Args:
        arm: None leaves the model unchanged.
        options: the options of the arm's variant of the model; empty in most arms.
        folder: the run's own folder, in which it may keep files, such as checkpoints to go on from. It is there when
            the run begins, and holds what an interrupted run of the same comparison left.
    """

    def __init__(self, arm: Arm | None, options: Mapping[str, Any] | None = None, folder: Path | None = None) -> None:
        self.arm = arm
        self.options = dict(options or {})
        self.folder = folder
        self.weights: list[str] = []
        self.random_states: list[str] = []
        self.environment: dict[str, Any] = {}

    def __call__(self, model: ModelT) -> ModelT:
        """Apply the arm to ``model`` in place.

        Raises:
            TypeError: ``model`` is not a module. Errors of ``precondition_`` are raised unchanged.
        """
        if not isinstance(model, nn.Module):
            raise TypeError(f"prepare takes the model, an nn.Module; got {type(model).__name__}")
        self.environment = describe_machine()  # here, because the run may have set the number of threads
        self.weights.append(hash_weights(model))
        if self.arm is not None:
            with preserve_random_state():
                self.arm.apply(model)
        self.random_states.append(hash_random_state())
        return model
