"""The ``prepare`` argument of a run: applies the arm, and hashes initial weights and random state."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from ..._extras import require
from ..training.arms import Arm

ModelT = TypeVar("ModelT", bound=nn.Module)


class FairnessError(RuntimeError):
    """Two arms had different initial states, or an arm was never applied, so the comparison is invalid."""


@contextlib.contextmanager
def preserve_random_state() -> Iterator[None]:
    """Restore the states of the global generators on exit."""
    np = require("numpy", extra="train")
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)


def hash_weights(model: nn.Module) -> str:
    """SHA-256 over the name, dtype, shape and bytes of every parameter and buffer, whatever their device."""
    digest = hashlib.sha256()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def hash_random_state() -> str:
    """SHA-256 over the state of torch's global generators (CPU and every CUDA device)."""
    states = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]
    return hashlib.sha256(b"".join(state.numpy().tobytes() for state in states)).hexdigest()


class Prepare:
    """A callable that applies the arm to a new model in place and returns the model.

    It records a hash of the model before the arm is applied, and leaves the global random state unchanged, so that
    batches and dropout masks are the same in every arm.

    Args:
        arm: None leaves the model unchanged.
        options: the options of the arm's variant of the model; empty in most arms.
    """

    def __init__(self, arm: Arm | None, options: Mapping[str, Any] | None = None) -> None:
        self.arm = arm
        self.options = dict(options or {})
        self.weights: list[str] = []
        self.random_states: list[str] = []

    def __call__(self, model: ModelT) -> ModelT:
        """Apply the arm to ``model`` in place.

        Raises:
            TypeError: ``model`` is not a module. Errors of ``precondition_`` are raised unchanged.
        """
        if not isinstance(model, nn.Module):
            raise TypeError(f"prepare takes the model, an nn.Module; got {type(model).__name__}")
        self.weights.append(hash_weights(model))
        if self.arm is not None:
            with preserve_random_state():
                self.arm.apply(model)
        self.random_states.append(hash_random_state())
        return model
