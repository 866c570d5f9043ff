import pytest
import torch
from torch import Tensor, nn

from preconditioned_attention import precondition_, restore_
from tests.helpers.explicit import attention_rows, diagonal_product, relative_error
from tests.helpers.oracle import jitter_, normalizing_inside

pytest.importorskip("open_clip")

from open_clip import modified_resnet, transformer

from preconditioned_attention.conversion.adapters.open_clip.swaps import AttentionPoolSwap

POOLING = ("softmax", "pooling")


def pool_by_hand(module: nn.Module, x: Tensor) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2)
    tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1) + module.positional_embedding
    q, k, v = (
        project(tokens).unflatten(-1, (module.num_heads, -1)).transpose(1, 2)
        for project in (module.q_proj, module.k_proj, module.v_proj)
    )
    rows = diagonal_product(attention_rows(q, k, v))
    return module.c_proj(rows.transpose(1, 2).flatten(2))[:, 0]


@pytest.mark.parametrize("training", [True, False])
def test_attention_pooling(training: bool) -> None:
    module = jitter_(modified_resnet.AttentionPool2d(3, 12, 3, 7)).double().train(training)
    x = torch.randn(2, 12, 3, 3, dtype=torch.float64)
    plain = module(x)
    with pytest.raises(ValueError, match=r"include=\('softmax', 'channel', 'pooling'\)"):
        precondition_(module)
    precondition_(module, include=POOLING, strict=True)
    assert module(x).shape == plain.shape
    assert relative_error(module(x), pool_by_hand(module, x)) <= 1e-12
    assert relative_error(plain, module(x)) > 1e-3
    restore_(module)
    assert torch.equal(module(x), plain)


def test_whole_towers() -> None:
    resnet = jitter_(modified_resnet.ModifiedResNet([1, 1, 1, 1], 8, 8, image_size=32, width=4), 0.05).double().eval()
    report = precondition_(resnet, include=POOLING, strict=True)
    report.verify(torch.randn(1, 3, 32, 32, dtype=torch.float64))
    options = {"scale_attn_inner": True, "qk_norm": True}
    custom = transformer.VisionTransformer(
        16, 8, 12, 2, 3, 2.0, output_dim=6, block_type="custom", norm_layer=nn.LayerNorm, **options
    )
    custom = jitter_(custom).double().eval()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    plain = custom(x)
    with normalizing_inside(custom, transformer.Attention):
        expected = custom(x)
    report = precondition_(custom, strict=True)
    report.verify(x)
    assert len(report.converted) == 2
    assert relative_error(custom(x), expected) <= 1e-10
    restore_(custom)
    assert torch.equal(custom(x), plain)


def test_the_installed_forward_is_the_known_one() -> None:
    """Fails when a new open_clip changes the pooling: read it, then renew the replacement and its digest."""
    assert AttentionPoolSwap.is_text_known()
