"""Attention functions in another file than the classes that call them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def mix_elsewhere(x: Tensor) -> Tensor:
    return _inner(x)


def _inner(x: Tensor) -> Tensor:
    return torch.softmax(x @ x.mT, dim=-1) @ x


def scattered_softmax(scores: Tensor, index: Tensor, nodes: int) -> Tensor:
    powers = scores.exp()
    total = torch.zeros(nodes, 1).index_add(0, index, powers)
    return powers / total[index]


def unhelpful_decorator(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def inner(x: Tensor) -> Tensor:
        return function(x)

    return inner


TABLE = {"eager": _inner, "fused": F.scaled_dot_product_attention}
