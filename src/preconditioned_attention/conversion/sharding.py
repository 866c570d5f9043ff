"""`shard_gains_`: the gains of a converted model, distributed as tensor parallelism distributes the heads."""

from __future__ import annotations

from torch import nn

from ..layers.distributed_gain import shard_gain
from .attachment import preconditioned_modules, preconditioner_of


def shard_gains_(model: nn.Module) -> int:
    """Make every gain a distributed parameter, with the shard of the heads that this process computes.

    Call it after `parallelize_module`, and before the optimizer is built, where ``model`` was converted first. A model
    that is converted after tensor parallelism gets such gains at once. Without a gain there is nothing to distribute.

    Args:
        model: converted; the weights of its attention are distributed tensors.

    Returns:
        How many gains were distributed: those of attention whose weights are distributed, and that were plain.

    Raises:
        ValueError: the heads of an attention do not divide among the processes.
    """
    return sum(shard_gain(module, preconditioner_of(module)) for _, module in preconditioned_modules(model))
