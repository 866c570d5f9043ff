import pytest
import torch
import transformers
from torch import Tensor, nn

from preconditioned_attention import PreconditionConfig
from preconditioned_attention.conversion.adapters.known_text_swap import KnownTextSwap
from preconditioned_attention.conversion.adapters.transformers.swaps_esmfold2 import MSASwap
from tests.helpers.explicit import diagonal_product
from tests.helpers.oracle import compare, jitter_
from tests.helpers.transformers_modules import attention_class, config, heads, rows

X = rows(2, 9)


def made(name: str, *args: object, **options: object) -> nn.Module:
    """The attention module in float64, its weights moved."""
    torch.manual_seed(0)
    return jitter_(attention_class(name)(*args, **options)).double()


def test_over_an_alignment() -> None:
    """Theirs takes its softmax in float32."""
    settings = config(
        msa_encoder=config(head_dim=8, hidden_size=32, num_attention_heads=4), pairwise_hidden_size=6, eps=1e-5
    )
    module = made("esmfold2.EsmFold2MSAPairWeightedAveraging", settings).float()
    alignment = torch.randn(2, 9, 3, 32, generator=torch.Generator().manual_seed(1))
    pairs = torch.randn(2, 9, 9, 6, generator=torch.Generator().manual_seed(2))
    mask = torch.ones(2, 9, 9, dtype=torch.bool)
    mask[1, :, 6:] = False

    def by_hand(inside: nn.Module, msa: Tensor, pair: Tensor, keep: Tensor) -> Tensor:
        x = inside.norm_single(msa)
        scores = inside.bias_proj(inside.bias_norm(pair)).masked_fill(~keep[..., None], -torch.inf)
        weights = scores.softmax(dim=2).permute(0, 3, 1, 2)
        merged = torch.stack(
            [
                diagonal_product(weights @ heads(inside.v_proj(x[:, :, row]))).transpose(1, 2).flatten(2)
                for row in range(x.shape[2])
            ],
            dim=2,
        )
        return inside.o_proj(inside.gate_proj(x).sigmoid() * merged)

    for train in (False, True):
        proof = compare(module.train(train), alignment, pairs, mask, config=PreconditionConfig(), reference=by_hand)
        assert proof.error <= 1e-5
        assert proof.effect > 1e-3


@pytest.mark.parametrize("swap", [MSASwap])
def test_the_installed_text_is_the_known_one(swap: type[KnownTextSwap]) -> None:
    """Fails when a new transformers changes it: read it, then renew the replacement and its digest."""
    assert swap.is_text_known(), transformers.__version__
    assert not swap().supports(type("Other", (swap.original,), {}), swap.original), "it may have more to its forward"
