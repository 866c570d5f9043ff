import pytest
import timm
import torch
from timm.layers import attention as upstream
from torch import Tensor, nn

from preconditioned_attention import PreconditionConfig, precondition_
from preconditioned_attention.conversion.adapters.timm.swaps_attention import AttentionSwap
from tests.helpers.explicit import attention_rows, diagonal_product, relative_error


def by_hand(module: nn.Module, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """timm's attention with one line added, in plain PyTorch."""
    batch, tokens, _ = x.shape
    split = (batch, tokens, 3, module.num_heads, module.head_dim)
    q, k, v = module.qkv(x).view(split).permute(2, 0, 3, 1, 4)
    rows = diagonal_product(attention_rows(module.q_norm(q), module.k_norm(k), v, mask))
    merged = module.norm(rows.transpose(1, 2).reshape(batch, tokens, -1))
    return module.proj(merged if module.gate is None else merged * module.gate(x).sigmoid())


VARIANTS = {
    "vit": {"qkv_bias": True},
    "qk norm": {"qk_norm": True, "norm_layer": nn.LayerNorm},
    "scale norm": {"scale_norm": True, "norm_layer": nn.LayerNorm},
    "gated": {"gated": True, "qkv_bias": True},
    "wide heads": {"attn_head_dim": 6, "dim_out": 10},
}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("known", [True, False], ids=["class swap", "pre-hook"])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_against_a_forward_by_hand(options: dict, known: bool, fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not known:
        monkeypatch.setitem(AttentionSwap.methods, "forward", "another text")
    module = upstream.Attention(12, 3, **options).double().eval()
    module.fused_attn = fused
    report = precondition_(module)
    assert report.entries[0].mechanism == ("class swap" if known else "pre-hook")
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    causal = torch.ones(9, 9, dtype=torch.bool).tril()
    bias = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    assert relative_error(module(x), by_hand(module, x)) <= 1e-12
    assert relative_error(module(x, is_causal=True), by_hand(module, x, causal)) <= 1e-12
    assert relative_error(module(x, attn_mask=causal), by_hand(module, x, causal)) <= 1e-12
    assert relative_error(module(x, attn_mask=bias), by_hand(module, x, bias)) <= 1e-12


@pytest.mark.parametrize("gradient", ["full", "stop"])
def test_gradients_against_the_forward_by_hand(gradient: str) -> None:
    module = upstream.Attention(12, 3).double()
    precondition_(module, PreconditionConfig(gradient=gradient))
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    actual = torch.autograd.grad(module(x).square().sum(), module.qkv.weight)[0]
    q, k, v = module.qkv(x).view(2, 9, 3, 3, 4).permute(2, 0, 3, 1, 4)
    rows = diagonal_product(attention_rows(q, k, v), constant=gradient == "stop")
    loss = module.proj(rows.transpose(1, 2).reshape(2, 9, 12)).square().sum()
    assert relative_error(actual, torch.autograd.grad(loss, module.qkv.weight)[0]) <= 1e-12


def test_dropout_is_on_in_training_only() -> None:
    module = upstream.Attention(12, 3, attn_drop=0.5).double()
    precondition_(module)
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))


def test_the_installed_forward_is_the_known_one() -> None:
    """Fails when a new timm changes the forward: read it, then renew the replacement and its digest."""
    assert AttentionSwap.is_text_known()


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_whole_models(name: str) -> None:
    report = precondition_(timm.create_model(name, depth=2, embed_dim=24, num_heads=3, img_size=32), strict=True)
    assert len(report.converted) == 2
