"""Every rule against a tensor that varies along the followed axes and along no other."""

import pytest
import torch
from torch import Tensor

from preconditioned_attention.conversion.detection.axes import follow_axes, remove_axes, summed_axes

X = torch.zeros(2, 3, 4, 5)


def varying(axis: int) -> Tensor:
    """A tensor of X's shape whose entries tell their place along ``axis``, and nothing else."""
    shape = [1] * X.dim()
    shape[axis] = X.shape[axis]
    return (torch.arange(float(X.shape[axis])).view(shape) + 1).expand(X.shape)


def axes_that_vary(out: Tensor) -> set[int]:
    return {axis for axis in range(-out.dim(), 0) if out.size(axis) > 1 and out.diff(dim=axis).abs().sum() > 0}


@pytest.mark.parametrize("axis", [-4, -3, -2, -1])
@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("view", ([6, 20],)),
        ("view", ([2, 3, 2, 2, 5],)),
        ("view", ([2, 12, 5],)),
        ("permute", ([0, 2, 3, 1],)),
        ("permute", ([-1, 1, 0, -2],)),
        ("transpose", (1, -1)),
        ("unsqueeze", (0,)),
        ("unsqueeze", (2,)),
        ("unsqueeze", (-1,)),
        ("squeeze", ()),
        ("select", (1, 0)),
        ("sum", ([1], True)),
        ("mean", ([0, -1],)),
        ("expand", ([7, 2, 3, 4, 5],)),
        ("flip", ([0],)),
        ("abs", ()),
    ],
    ids=str,
)
def test_an_axis_is_followed(name: str, args: tuple, axis: int) -> None:
    source = varying(axis)
    if name in ("sum", "mean") and axis in summed_axes((source, *args), {}, source):
        pytest.skip("it is gone")
    out = getattr(source, name if name != "view" else "reshape")(*args)
    assert follow_axes(name, (source, *args), source, frozenset({axis}), out) == axes_that_vary(out)


def test_the_rest() -> None:
    x = torch.zeros(3, 4)
    assert follow_axes("t", (x,), x, frozenset({-1}), x.t()) == {-2}
    assert follow_axes("stack", ([x, x], 1), x, frozenset({-2}), torch.stack([x, x], 1)) == {-3}
    assert follow_axes("squeeze", (x[None], 0), x[None], frozenset({-1}), x) == {-1}
    assert follow_axes("select", (x, 0, 1), x, frozenset({-2}), x[0]) == frozenset()
    assert follow_axes("index", (x, [x]), x, frozenset({-1}), x[0]) is None
    assert follow_axes("abs", (x,), x, None, x) is None
    assert summed_axes((x,), {}, x) == {-1, -2}
    assert summed_axes((x,), {"dim": 0}, x) == {-2}
    assert remove_axes(frozenset({-1, -3}), frozenset({-2})) == {-1, -2}
    assert remove_axes(None, frozenset({-2})) is None
