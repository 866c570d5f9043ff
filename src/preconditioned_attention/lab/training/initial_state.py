"""The state that a run begins with: hashes that tell whether two runs began with the same, and the conversion."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..._extras import require
from .state import Prepare


class HashedPrepare:
    """``prepare``, with a hash of the model before it and one of the random state after it.

    Runs with equal hashes began with the same weights, and had drawn the same random numbers, whatever their arm.

    Args:
        prepare: called with the new model; returns the model.
    """

    def __init__(self, prepare: Prepare) -> None:
        self._prepare = prepare
        self.weights = ""
        self.random_state = ""

    def __call__(self, model: nn.Module) -> nn.Module:
        """Hash and prepare ``model``. Errors of ``prepare`` are raised unchanged."""
        self.weights = hash_weights(model)
        prepared = self._prepare(model)
        self.random_state = hash_random_state()
        return prepared


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
    """SHA-256 over the states of torch's global generators.

    That of a CUDA device counts if something was drawn from it, or it was seeded apart, so that machines with another
    number of devices can be compared.
    """
    on_devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    states = [torch.get_rng_state(), *(state for state in on_devices if not _is_untouched(state))]
    return hashlib.sha256(b"".join(state.numpy().tobytes() for state in states)).hexdigest()


def _is_untouched(state: Tensor) -> bool:
    """Whether the state of a CUDA device, its seed and how much was drawn, is what ``torch.manual_seed`` left."""
    seed, drawn = state.view(torch.int64).tolist()
    return drawn == 0 and seed % 2**64 == torch.initial_seed() % 2**64
