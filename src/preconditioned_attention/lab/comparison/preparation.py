"""Fairness: every arm starts from the same weights and the same random state, and that is checked."""

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
    """Two arms did not start from the same point, or an arm was never applied: the comparison would mean nothing."""


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """Put the global generators back where they were on entry."""
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
    """SHA-256 over the name, dtype, shape and bytes of every parameter and buffer, on whatever device."""
    digest = hashlib.sha256()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def hash_random_state() -> str:
    """SHA-256 over the state of torch's global generators (CPU, and every CUDA device there is)."""
    states = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]
    return hashlib.sha256(b"".join(state.numpy().tobytes() for state in states)).hexdigest()


class Prepare:
    """What a run calls on each of its models once they are built: applies the arm in place and returns the model.

    It records a hash of the model before the arm is applied, and leaves the global random state as it found it,
    so that what follows (batches, dropout) is the same in every arm.

    Args:
        arm: None leaves the model as it is.
        options: the arm's variant of the task, for ``run`` to build the model by; empty in most arms.
    """

    def __init__(self, arm: Arm | None, options: Mapping[str, Any] | None = None) -> None:
        self.arm = arm
        self.options = dict(options or {})
        self.weights: list[str] = []
        self.random_states: list[str] = []

    def __call__(self, model: ModelT) -> ModelT:
        """Apply the arm to ``model`` in place.

        Raises:
            TypeError: ``model`` is not a module. Whatever ``precondition_`` refuses is raised unchanged.
        """
        if not isinstance(model, nn.Module):
            raise TypeError(f"prepare takes the model, an nn.Module; got {type(model).__name__}")
        self.weights.append(hash_weights(model))
        if self.arm is not None:
            with random_state_kept():
                self.arm.apply(model)
        self.random_states.append(hash_random_state())
        return model
