import functools
import pickle
from collections.abc import Callable

import pytest
import torch
from timm.models import efficientformer_v2
from torch import Tensor, nn

from preconditioned_attention import PreconditionConfig, precondition_
from preconditioned_attention.conversion.adapters.known_text_swap import RequiredTextSwap
from preconditioned_attention.conversion.adapters.timm.swaps_efficientformer_v2 import (
    Attention2dDownsampleSwap,
    Attention2dSwap,
)
from tests.helpers.oracle import compare, jitter_

image2d = functools.partial(efficientformer_v2.Attention2d, 12, 4, 3, attn_ratio=2, resolution=4)


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


CASES = {
    "EfficientFormerV2": image2d,
    "EfficientFormerV2, strided": functools.partial(image2d, stride=2),
    "EfficientFormerV2, between stages": functools.partial(
        efficientformer_v2.Attention2dDownsample, 12, 4, 3, attn_ratio=2, resolution=4, out_dim=10
    ),
}


@pytest.mark.parametrize("build", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("gain", [None, 1.0], ids=["", "gain"])
def test_against_attention_that_normalizes_inside(
    build: Callable[[], nn.Module], training: bool, gain: float | None
) -> None:
    module = jitter_(build().double())
    module.train(training)
    proof = compare(module, rand(2, 12, 4, 4), config=PreconditionConfig(gain=gain))
    assert proof.error <= 1e-10
    assert proof.effect > 1e-3
    (entry,) = proof.report.entries
    assert entry.mechanism == "class swap"
    assert proof.widths == {entry.head_dim}


@pytest.mark.parametrize("swap", [Attention2dSwap, Attention2dDownsampleSwap])
def test_the_installed_forward_is_the_known_one(swap: type[RequiredTextSwap]) -> None:
    """Fails when a new timm changes the forward: read it, then renew the replacement and its digest."""
    assert swap.is_text_known()


def test_a_converted_module_can_be_pickled() -> None:
    module = image2d().double()
    module.eval()
    precondition_(module)
    again = pickle.loads(pickle.dumps(module))
    x = rand(2, 12, 4, 4)
    assert torch.equal(again(x), module(x))
