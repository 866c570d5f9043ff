import pytest
import torch
import transformers
from torch import Tensor, nn

from preconditioned_attention import PreconditionConfig, precondition_
from preconditioned_attention.conversion.adapters.known_text_swap import KnownTextSwap
from preconditioned_attention.conversion.adapters.transformers.swaps_esmfold import EsmFoldSelfSwap, EsmFoldSwap
from tests.helpers.explicit import attention_rows, diagonal_product
from tests.helpers.oracle import compare, jitter_
from tests.helpers.transformers_modules import attention_class, rows

X = rows(2, 9)


def made(name: str, *args: object, **options: object) -> nn.Module:
    """The attention module in float64, its weights moved."""
    torch.manual_seed(0)
    return jitter_(attention_class(name)(*args, **options)).double()


@pytest.mark.parametrize("gating", [False, True])
def test_along_the_pairs(gating: bool) -> None:
    """Rows of the pair representation, with a bias and a mask."""
    module = made("esm.esmfold.EsmFoldAttention", 32, 32, 32, 8, 4, gating=gating)
    padding = torch.zeros(9, dtype=torch.float64)
    padding[6:] = -1e9
    bias = torch.randn(1, 4, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for train in (False, True):
        proof = compare(module.train(train), X, X, [padding, bias], config=PreconditionConfig())
        assert proof.error <= 1e-12
        assert proof.effect > 1e-3
    # what the oracle saw: it follows the file's own softmax
    assert proof.widths == {8}


@pytest.mark.parametrize("gated", [False, True])
def test_over_the_sequence(gated: bool) -> None:
    module = made("esm.esmfold.EsmFoldSelfAttention", 32, 4, 8, gated=gated)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 6:] = False
    bias = torch.randn(2, 9, 9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def by_hand(inside: nn.Module, x: Tensor, keep: Tensor, pairs: Tensor) -> Tensor:
        q, k, v = inside.proj(x).unflatten(-1, (4, 24)).transpose(1, 2).chunk(3, dim=-1)
        masked = pairs.permute(0, 3, 1, 2).masked_fill(~keep[:, None, None], -torch.inf)
        merged = diagonal_product(attention_rows(q, k, v, masked)).transpose(1, 2).flatten(2)
        return inside.o_proj(inside.g_proj(x).sigmoid() * merged if gated else merged)

    for reference in (None, by_hand):
        for train in (False, True):
            proof = compare(module.train(train), X, mask, bias, config=PreconditionConfig(), reference=reference)
            assert proof.error <= 1e-12
            assert proof.effect > 1e-3
    plain = module(X, mask, bias)[1]
    precondition_(module)
    assert torch.allclose(module(X, mask, bias)[1], plain, rtol=1e-12), "the weights are as they were"


@pytest.mark.parametrize("swap", [EsmFoldSelfSwap, EsmFoldSwap])
def test_the_installed_text_is_the_known_one(swap: type[KnownTextSwap]) -> None:
    """Fails when a new transformers changes it: read it, then renew the replacement and its digest."""
    assert swap.is_text_known(), transformers.__version__
    assert not swap().supports(type("Other", (swap.original,), {}), swap.original), "it may have more to its forward"
