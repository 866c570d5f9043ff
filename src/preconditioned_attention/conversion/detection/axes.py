"""Following axes of a tensor through ATen operators.

Axes are counted from the end (-1, -2, ...), so broadcasting does not change them. None means unknown: the operator is
not one that is followed axis by axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import prod
from typing import Any

from torch import Tensor

Axes = frozenset[int] | None


def follow_axes(name: str, args: tuple[Any, ...], source: Tensor, axes: Axes, out: Tensor) -> Axes:
    """The axes of ``out`` that correspond to ``axes`` of ``source``.

    Args:
        name: the operator, such as ``"permute"``.
        args: what it was called with; ``source`` is one of them.
        source: the tensor whose axes are followed.
        axes: of ``source``, negative.
        out: what the operator returned.
    """
    if axes is None:
        return None
    rule = _RULES.get(name)
    if rule is not None:
        return rule(args, source, axes, out)
    return axes if out.dim() >= source.dim() else None


def summed_axes(args: tuple[Any, ...], kwargs: dict[str, Any], source: Tensor) -> frozenset[int]:
    """The axes of ``source`` that ``sum(source, dim, keepdim)`` sums over; without ``dim`` all of them."""
    dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
    return _negative(dims if dims is not None and dims != [] else range(source.dim()), source.dim())


def _negative(dims: int | Iterable[int], rank: int) -> frozenset[int]:
    chosen = (dims,) if isinstance(dims, int) else dims
    return frozenset(dim if dim < 0 else dim - rank for dim in chosen)


def _viewed(args: tuple[Any, ...], source: Tensor, axes: frozenset[int], out: Tensor) -> Axes:
    """A view keeps the row-major order: an axis is found by the range of strides that it spans."""
    ranges = [_reach(source, axis) for axis in axes]
    found = {
        axis
        for axis in range(-out.dim(), 0)
        for low, high in ranges
        if max(low, _reach(out, axis)[0]) < min(high, _reach(out, axis)[1])
    }
    return frozenset(found) or None


def _reach(tensor: Tensor, axis: int) -> tuple[int, int]:
    shape = tuple(tensor.shape)
    inner = prod(shape[tensor.dim() + axis + 1 :])
    return inner, inner * shape[axis]


def _permuted(args: tuple[Any, ...], source: Tensor, axes: frozenset[int], out: Tensor) -> Axes:
    order = [dim % source.dim() for dim in args[1]]
    return frozenset(order.index(source.dim() + axis) - source.dim() for axis in axes)


def _transposed(args: tuple[Any, ...], source: Tensor, axes: frozenset[int], out: Tensor) -> Axes:
    first, second = args[1:3] if len(args) > 2 else (-1, -2)  # `t` has no arguments
    rank = source.dim()
    pair = (first % rank - rank, second % rank - rank) if rank > 1 else (-1, -1)
    swap = {pair[0]: pair[1], pair[1]: pair[0]}
    return frozenset(swap.get(axis, axis) for axis in axes)


def _unsqueezed(args: tuple[Any, ...], source: Tensor, axes: frozenset[int], out: Tensor) -> Axes:
    new = args[1] % out.dim() - out.dim()
    return frozenset(axis if axis > new else axis - 1 for axis in axes)


def _stacked(args: tuple[Any, ...], source: Tensor, axes: frozenset[int], out: Tensor) -> Axes:
    new = (args[1] if len(args) > 1 else 0) % out.dim() - out.dim()
    return frozenset(axis if axis > new else axis - 1 for axis in axes)


def remove_axes(axes: Axes, removed: frozenset[int]) -> Axes:
    """``axes`` after the axes ``removed`` have been removed; those among them are dropped."""
    if axes is None:
        return None
    return frozenset(axis + sum(gone > axis for gone in removed) for axis in axes - removed)


def _squeezed(args: tuple[Any, ...], source: Tensor, axes: frozenset[int], out: Tensor) -> Axes:
    chosen = _negative(args[1] if len(args) > 1 else range(source.dim()), source.dim())
    return remove_axes(axes, frozenset(axis for axis in chosen if source.shape[axis] == 1))


def _selected(args: tuple[Any, ...], source: Tensor, axes: frozenset[int], out: Tensor) -> Axes:
    return remove_axes(axes, _negative(args[1] if len(args) > 1 else 0, source.dim()))


def _reduced(args: tuple[Any, ...], source: Tensor, axes: frozenset[int], out: Tensor) -> Axes:
    return axes if out.dim() == source.dim() else remove_axes(axes, summed_axes(args, {}, source))


_Rule = Callable[[tuple[Any, ...], Tensor, frozenset[int], Tensor], Axes]
_RULES: dict[str, _Rule] = {
    "view": _viewed,
    "_unsafe_view": _viewed,
    "reshape": _viewed,
    "_reshape_alias": _viewed,
    "permute": _permuted,
    "transpose": _transposed,
    "t": _transposed,
    "unsqueeze": _unsqueezed,
    "stack": _stacked,
    "squeeze": _squeezed,
    "select": _selected,
    "unbind": _selected,
    "sum": _reduced,
    "mean": _reduced,
    "amax": _reduced,
}
