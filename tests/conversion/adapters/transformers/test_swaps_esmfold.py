import pytest
import torch
import transformers
from torch import Tensor, nn

from preconditioned_attention import PreconditionConfig, precondition_
from preconditioned_attention.conversion.adapters.transformers.swaps_esmfold import find
from preconditioned_attention.conversion.adapters.transformers.tables import SWAPPED
from tests.helpers.explicit import attention_rows, diagonal_product
from tests.helpers.oracle import compare, jitter_
from tests.helpers.transformers_modules import attention_class, config, heads, rows

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


@pytest.mark.parametrize("name", SWAPPED["swaps_esmfold"])
def test_the_installed_texts_are_the_known_ones(name: str) -> None:
    """Fails when a new transformers changes one: read it, then renew the replacement and its digest."""
    folder, file, cls = name.split(".")[2:5]
    cls = attention_class(f"{folder}.{file.removeprefix('modeling_')}.{cls}")
    assert find(cls) is not None, transformers.__version__
    assert find(type("Other", (cls,), {})) is None, "a subclass may have more to its forward"
