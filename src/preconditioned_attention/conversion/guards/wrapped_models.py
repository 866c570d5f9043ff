"""Refusing a gain in models that are wrapped for training on several processes, which would leave it out."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ...layers import Preconditioner


def check_gain_is_included(model: nn.Module) -> None:
    """Raise if a part of ``model`` is wrapped: a gain that is added now would be trained on each process by itself.

    Raises:
        ValueError: a part is wrapped.
    """
    for path, module in model.named_modules():
        name = _wrapper(module)
        if name is not None:
            where = f"its submodule {path!r}" if path else "the model"
            raise ValueError(
                f"config.gain must be None where {where} is wrapped by {name}, which took its parameters before and "
                f"would leave the gain on each process by itself: call precondition_ before {name}"
            )


def check_gains_are_reduced(preconditioners: Iterable[Preconditioner]) -> None:
    """Raise in a forward pass of `DistributedDataParallel` that does not average the gradients of a gain.

    Raises:
        RuntimeError: the gain was added to the module inside the wrapper.
    """
    wrapper = DistributedDataParallel._active_ddp_module
    if wrapper is None or not hasattr(wrapper, "_module_parameters"):
        return
    known = {id(parameter) for parameter in wrapper._module_parameters}
    for preconditioner in preconditioners:
        gain = preconditioner.gain
        if gain is not None and gain.requires_grad and id(gain) not in known:
            raise RuntimeError(
                "a gain was added after DistributedDataParallel had taken the parameters, and its gradients would not "
                "be averaged: call precondition_ before DistributedDataParallel"
            )


def _wrapper(module: nn.Module) -> str | None:
    if isinstance(module, DistributedDataParallel):
        return "DistributedDataParallel"
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None and isinstance(module, fsdp.FullyShardedDataParallel):
        return "FullyShardedDataParallel"
    if fsdp is not None and isinstance(module, fsdp.FSDPModule):
        return "fully_shard"
    return None
