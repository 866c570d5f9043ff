import functools
from collections.abc import Callable

import pytest
import torch
from timm.models import mvitv2
from torch import Tensor, nn

from preconditioned_attention import PreconditionConfig, precondition_
from preconditioned_attention.conversion.adapters.timm.swaps_mvitv2 import MultiScaleAttentionSwap
from tests.helpers.oracle import compare, jitter_

strided = functools.partial(mvitv2.MultiScaleAttention, 12, 24, (4, 4), 3, kernel_q=(3, 3), stride_q=(2, 2))


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def tokens(count: int) -> Callable[[], tuple[Tensor, list[int]]]:
    return lambda: (rand(2, count, 12), [4, 4])


CASES = {
    "MViTv2": (functools.partial(strided, kernel_kv=(3, 3), stride_kv=(2, 2)), tokens(17)),
    "MViTv2, no class token": (functools.partial(strided, has_cls_token=False), tokens(16)),
    "MViTv2, no residual": (functools.partial(strided, residual_pooling=False, rel_pos_type=""), tokens(17)),
    "MViTv2, max": (functools.partial(strided, mode="max"), tokens(17)),
    "MViTv2, unpooled": (lambda: mvitv2.MultiScaleAttention(12, 24, (4, 4), 3), tokens(17)),
}


@pytest.mark.parametrize(("build", "inputs"), CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("gain", [None, 1.0], ids=["", "gain"])
def test_against_attention_that_normalizes_inside(
    build: Callable[[], nn.Module], inputs: Callable[[], tuple], training: bool, gain: float | None
) -> None:
    module = jitter_(build().double())
    module.train(training)
    proof = compare(module, *inputs(), config=PreconditionConfig(gain=gain))
    assert proof.error <= 1e-10
    assert proof.effect > 1e-3
    (entry,) = proof.report.entries
    assert entry.mechanism == "class swap"
    assert proof.widths == {entry.head_dim}


def test_the_second_thing_returned_is_the_size_of_the_map() -> None:
    module = strided().double()
    x = rand(2, 17, 12)
    size = module(x, [4, 4])[1]
    precondition_(module)
    assert module(x, [4, 4])[1] == size == [2, 2]


def test_the_installed_forward_is_the_known_one() -> None:
    """Fails when a new timm changes the forward: read it, then renew the replacement and its digest."""
    assert MultiScaleAttentionSwap.is_text_known()


def test_another_forward_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MultiScaleAttentionSwap.methods, "forward", "another text")
    with pytest.raises(ValueError, match=r"is not that of timm 1\.0\.31"):
        precondition_(strided())
