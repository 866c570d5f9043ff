"""The condition number of a layer's Jacobian with respect to its input."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel

from .condition import condition_number

JACOBIAN_LIMIT = 2048
"""The geometric mean of the input's and the output's number of entries, per sample, up to which a dense Jacobian and
its singular values are computed: 32 MiB, seconds on a CPU. 32 tokens of width 64 have 2048 entries."""

_CHUNK = 128  # rows of the Jacobian that are computed at a time


def jacobian_kappa(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, sample: int, name: str) -> float:
    """`kappa` of the Jacobian of ``layer(*args, **kwargs)`` with respect to its first tensor, for one sample.

    Every argument that is the same tensor (query, key and value of self-attention) varies with it. In float64, in
    evaluation mode: without dropout. NaN where it is numerically singular or not finite.

    Args:
        layer: an attention layer, or any block that maps a tensor to a tensor, or to a tuple that starts with one.
        args, kwargs: its arguments.
        sample: the place in the batch.
        name: the layer's name in errors.

    Raises:
        ValueError: no floating-point input, an argument that a second call might change (a cache), or more entries
            than :data:`JACOBIAN_LIMIT`.
    """
    arguments = [*args, *kwargs.values()]
    given = next((x for x in arguments if isinstance(x, Tensor) and x.is_floating_point()), None)
    if given is None:
        raise ValueError(f"jacobian: {name} is called without a floating-point tensor")
    for value in arguments:
        _check_argument(value, name)
    axis = _batch_axis(layer, given)
    state = {key: _double(value) for key, value in [*layer.named_parameters(), *layer.named_buffers()]}
    x = _double(given)

    def output(one: Tensor) -> Tensor:
        whole = one if axis is None else torch.cat(_around(x, one, axis, sample), dim=axis)
        changed = [whole if value is given else _double(value) for value in arguments]
        named = dict(zip(kwargs, changed[len(args) :], strict=True))
        out = functional_call(layer, state, tuple(changed[: len(args)]), named)
        out = out[0] if isinstance(out, tuple) else out
        return out if axis is None else out.narrow(axis, sample, 1)

    one = x if axis is None else x.narrow(axis, sample, 1)
    with _evaluating(layer), sdpa_kernel(SDPBackend.MATH), torch.autocast(x.device.type, enabled=False):
        with torch.no_grad():
            size = (output(one).numel(), one.numel())
        _check_size(size, name)
        jacobian = jacrev(output, chunk_size=_CHUNK)(one).detach().reshape(size)
    return condition_number(jacobian).value.item()


def _check_size(size: tuple[int, int], name: str) -> None:
    if size[0] * size[1] > JACOBIAN_LIMIT**2:
        raise ValueError(
            f"jacobian: one sample of {name} has {size[1]} input and {size[0]} output entries, and a dense Jacobian is "
            f"computed up to {JACOBIAN_LIMIT} x {JACOBIAN_LIMIT}; use fewer tokens or a narrower model, or leave "
            "jacobian=False"
        )


def _check_argument(value: object, name: str) -> None:
    parts = value if isinstance(value, tuple | list) else (value,)
    if not all(part is None or isinstance(part, bool | int | float | str | torch.Size | Tensor) for part in parts):
        raise ValueError(
            f"jacobian: {name} is called with a {type(value).__name__}, which a second call might change; call the "
            "model without it (for a cache: use_cache=False)"
        )


def _batch_axis(layer: nn.Module, x: Tensor) -> int | None:
    """The axis of the samples; None where there is one sample without an axis."""
    if x.dim() < 3:
        return None
    return 0 if getattr(layer, "batch_first", True) else 1


def _around(x: Tensor, one: Tensor, axis: int, sample: int) -> list[Tensor]:
    return [x.narrow(axis, 0, sample), one, x.narrow(axis, sample + 1, x.shape[axis] - sample - 1)]


def _double(value: Any) -> Any:
    if isinstance(value, tuple | list) and not isinstance(value, torch.Size):
        return type(value)(map(_double, value))
    if not isinstance(value, Tensor):
        return value
    return value.detach().double() if value.is_floating_point() else value


@contextlib.contextmanager
def _evaluating(layer: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module has its own mode again."""
    modes = [(module, module.training) for module in layer.modules()]
    layer.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
