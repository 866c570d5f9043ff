import math

import pytest
import timm
import torch
import transformers
from torch import Tensor, nn

from preconditioned_attention import ConditionMonitor, layers, precondition_
from preconditioned_attention.diagnostics import jacobian_kappa
from preconditioned_attention.diagnostics.monitor_jacobian import JACOBIAN_LIMIT


def by_differences(function, x: Tensor) -> float:
    """kappa of the Jacobian by central differences, in float64."""
    columns, step = [], 1e-6
    for i in range(x.numel()):
        e = torch.zeros(x.numel(), dtype=x.dtype)
        e[i] = step
        e = e.view_as(x)
        columns.append((function(x + e) - function(x - e)).flatten() / (2 * step))
    values = torch.linalg.svdvals(torch.stack(columns, dim=1))
    return (values[0] / values[-1]).item()


@pytest.mark.parametrize("precondition", [None, layers.multihead.PAPER], ids=["plain", "preconditioned"])
def test_against_differences(precondition: object) -> None:
    layer = layers.MultiheadAttention(8, 2, precondition=precondition, attn_drop=0.3)
    x, mask = torch.randn(3, 4, 8), torch.ones(4, 4, dtype=torch.bool).tril()
    kappa = jacobian_kappa(layer, (x,), {"attn_mask": mask}, sample=1, name="layer")
    assert layer.training
    assert next(layer.parameters()).dtype == torch.float32
    exact = layer.double().eval()
    with torch.no_grad():
        expected = by_differences(lambda one: exact(one, attn_mask=mask), x[1:2].double())
    if precondition is None:
        assert kappa == pytest.approx(expected, rel=1e-4)
    else:  # C takes one direction per row and head away: what differences see there is their own rounding
        assert math.isnan(kappa)
        assert expected > 1e5


def test_query_key_and_value_move_together() -> None:
    attention = nn.MultiheadAttention(8, 2).double().eval()  # (tokens, samples, width)
    x = torch.randn(4, 3, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = by_differences(lambda one: attention(one, one, one)[0], x[:, 2:3])
    arguments = {"need_weights": False}
    assert jacobian_kappa(attention, (x, x, x), arguments, sample=2, name="layer") == pytest.approx(expected, rel=1e-4)


def test_the_monitor_records_it() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=8, depth=2, embed_dim=24, num_heads=3)
    images = torch.randn(2, 3, 16, 16)
    torch.manual_seed(3)
    model.train()(images)
    state = torch.get_rng_state()
    torch.manual_seed(3)
    with ConditionMonitor(model, jacobian=True) as monitor:
        model(images)
    assert torch.equal(torch.get_rng_state(), state)
    inputs: list[Tensor] = []
    handle = model.blocks[1].attn.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    model(images)
    handle.remove()
    kappa = jacobian_kappa(model.blocks[1].attn, (inputs[0],), {}, sample=0, name="layer")
    assert {record.kappa_jacobian for record in monitor.records if record.layer == "blocks.1.attn"} == {kappa}
    assert len(monitor.records) == 2 * 2 * 3


def test_what_is_too_large_or_might_change_is_refused() -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=1).eval()
    with (
        pytest.raises(ValueError, match=f"blocks.0.attn has 37824 input .* up to {JACOBIAN_LIMIT}"),
        ConditionMonitor(model, jacobian=True),
    ):
        model(torch.randn(1, 3, 224, 224))
    config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=20)
    gpt2 = transformers.GPT2Model(config).eval()
    tokens = torch.arange(4)[None]
    with pytest.raises(ValueError, match="use_cache=False"), ConditionMonitor(gpt2, jacobian=True):
        gpt2(tokens)
    with ConditionMonitor(gpt2, jacobian=True) as monitor:
        gpt2(tokens, use_cache=False)
    assert len({record.kappa_jacobian for record in monitor.records}) == 1
    precondition_(gpt2)
    with pytest.raises(ValueError, match="without a floating-point tensor"):
        jacobian_kappa(nn.Embedding(3, 4), (tokens,), {}, sample=0, name="layer")
