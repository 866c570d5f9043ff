import pytest
import torch
from torch import Tensor

from preconditioned_attention.conversion.detection.handwritten_softmax import has_handwritten_softmax


def in_one_line(x: Tensor) -> Tensor:
    return x.exp() / x.exp().sum(-1, keepdim=True)


def by_names(x: Tensor) -> Tensor:
    powers = torch.exp(x - x.amax())
    powers = powers * 2
    total = powers.sum(-1, keepdim=True) + 1e-6
    powers /= total
    return powers


def divided_late(x: Tensor) -> Tensor:
    powers = x.exp()
    return torch.div(powers @ x, powers.sum(-1, keepdim=True))


def over_groups(x: Tensor, index: Tensor) -> Tensor:
    powers = x.exp()
    return powers / torch.zeros(3).index_add(0, index, powers)[index]


def temperature(x: Tensor) -> Tensor:
    scale = x.exp()
    normed = x / x.norm()
    return (normed * scale).sum() / 3


def decay(x: Tensor) -> Tensor:
    return x.cumsum(-1).exp() / x.shape[-1] ** 0.5


def plain_mean(x: Tensor) -> Tensor:
    return x / x.sum()


@pytest.mark.parametrize("function", [in_one_line, by_names, divided_late, over_groups])
def test_a_softmax_by_hand(function) -> None:
    assert has_handwritten_softmax(function)


@pytest.mark.parametrize("function", [temperature, decay, plain_mean])
def test_exponentials_for_something_else(function) -> None:
    assert not has_handwritten_softmax(function)


def test_without_a_source() -> None:
    values: dict = {}
    exec("def made(x):\n    return x.exp() / x.exp().sum()", values)
    assert not has_handwritten_softmax(values["made"])
