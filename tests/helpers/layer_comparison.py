"""For the tests of the layers: the modes, and the comparison of a layer with a forward written by hand."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from preconditioned_attention import PreconditionConfig
from preconditioned_attention.layers import Preconditioner
from tests.helpers.explicit import diagonal_product, relative_error

MODES = {
    "plain": None,
    "full": PreconditionConfig(),
    "stop": PreconditionConfig(gradient="stop"),
    "gain": PreconditionConfig(gain=0.7),
}


def c_of(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    """What the layer is to do to its rows: nothing, or the product with the diagonal matrix, written out."""
    child = dict(layer.named_children()).get("preconditioner")
    if child is None:
        return lambda rows: rows
    assert isinstance(child, Preconditioner)
    return partial(diagonal_product, constant=child.config.gradient == "stop", gain=child.gain)


def split(x: Tensor, head_dim: int) -> Tensor:
    """(B, N, H d) -> (B, H, N, d)."""
    return x.reshape(*x.shape[:2], -1, head_dim).permute(0, 2, 1, 3)


def merge(rows: Tensor) -> Tensor:
    """(B, H, N, d) -> (B, N, H d)."""
    return rows.permute(0, 2, 1, 3).reshape(rows.shape[0], rows.shape[2], -1)


def assert_equal_with_gradients(actual: Tensor, expected: Tensor, layer: nn.Module, *inputs: Tensor) -> None:
    """Outputs to 1e-12; gradients of inputs and parameters to 1e-12 of the largest: that of a key bias is zero."""
    assert actual.shape == expected.shape
    assert relative_error(actual, expected) <= 1e-12
    wanted = [*inputs, *layer.parameters()]
    weight = torch.randn_like(expected)
    grads = [torch.autograd.grad((out * weight).sum(), wanted) for out in (actual, expected)]
    largest = max(grad.norm() for grad in grads[1])
    for own, other in zip(*grads, strict=True):
        assert (own - other).norm() <= 1e-12 * largest
