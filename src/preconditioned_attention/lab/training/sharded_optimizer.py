"""A check that an optimizer takes the same steps on divided parameters as on whole ones."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .processes import describe_error
from .sharding import distribute_like

STEPS = 3
# Some optimizers treat small matrices, and wide ones, in another way.
SHAPES = ((64,), (64, 48), (48, 64), (1, 64), (1, 48, 64), (32, 16, 3, 3))
RELATIVE_ERROR = 1e-3


def check_sharded_optimizer(optimizer: Optimizer) -> None:
    """Take a few steps on small tensors, whole and divided over the processes; every process must call it.

    Some optimizers cannot, as those that change sums over a parameter in place, and others might compute with the part
    that a process holds. An optimizer that cannot be built from its options is not checked.

    Raises:
        ValueError: the steps fail, or differ; the message names the optimizer.
    """
    kind, like = type(optimizer), next(iter(optimizer.param_groups[0]["params"]))
    known, defaults = inspect.signature(kind).parameters, optimizer.defaults
    options = {name: defaults[name] for name in known if name in defaults}

    def build(parameter: nn.Parameter) -> Optimizer:
        return kind([parameter], **options)

    try:
        build(nn.Parameter(torch.zeros(2, 2)))
    except Exception:
        return
    axes = {parameter.ndim for group in optimizer.param_groups for parameter in group["params"]}
    try:
        differ = max(_error(build, shape, like) for shape in SHAPES if len(shape) in axes) > RELATIVE_ERROR
    except Exception as error:  # of the optimizer
        raise ValueError(f"{_refusal(kind)}: {describe_error(error)}") from error
    if differ:
        raise ValueError(f"{_refusal(kind)}: its steps on divided parameters differ from those on whole ones")


def _refusal(kind: type[Optimizer]) -> str:
    return f"optimizer {kind.__name__} cannot be used with fsdp; take another, such as AdamW, or train without fsdp"


def _error(build: Callable[[nn.Parameter], Optimizer], shape: Sequence[int], like: Tensor) -> float:
    """The largest difference of the steps, over the largest step."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    generator = torch.Generator().manual_seed(0)
    start, *gradients = (torch.randn(*shape, generator=generator).to(like.device) for _ in range(STEPS + 1))
    reference = distribute_tensor(start, like.device_mesh, like.placements, src_data_rank=None)
    whole, divided = nn.Parameter(start.clone()), nn.Parameter(reference.clone())
    for parameter in (whole, divided):
        optimizer = build(parameter)
        for gradient in gradients:
            parameter.grad = distribute_like(gradient.clone(), parameter)
            optimizer.step()
    ended: Any = divided.detach()
    taken, error = whole.detach() - start, ended.full_tensor() - whole.detach()
    return float(error.abs().max() / taken.abs().max().clamp(min=torch.finfo(taken.dtype).tiny))
