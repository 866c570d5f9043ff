import math

import pytest
import torch
from torch import nn

from preconditioned_attention import precondition_
from preconditioned_attention.lab.inspection import Inputs, check_size, make_inputs, measure_model
from preconditioned_attention.lab.inspection import measurement as measurement_module
from tests.helpers.explicit import attention_rows, diagonal_product
from tests.helpers.inspection_models import LAYERS, gpt2, vit


def test_the_numbers_are_those_of_the_heads() -> None:
    model = vit()
    inputs = make_inputs(model, "vit", images=None, text=None, seed=0)
    seen = measure_model(model, inputs, layers=LAYERS, weights="random")
    assert (seen.precision, seen.layers, seen.no_entropy) == ("float64", tuple(LAYERS), {})
    assert [(head.layer, head.head) for head in seen.heads] == [(layer, i) for layer in LAYERS for i in range(3)]
    tokens = model.blocks[0].norm1(model._pos_embed(model.patch_embed(inputs.args[0].double())))
    q, k, v = model.blocks[0].attn.qkv(tokens).view(2, 17, 3, 3, 8).permute(2, 0, 3, 1, 4).unbind(0)
    rows = attention_rows(q, k, v)
    values = [torch.linalg.svdvals(x) for x in (rows, diagonal_product(rows))]
    before, after = ((x[..., 0] / x[..., -1]).mean(dim=0) for x in values)  # the median of two samples
    assert [head.kappa_before for head in seen.heads[:3]] == pytest.approx(before.tolist(), rel=1e-8)
    assert [head.kappa_after for head in seen.heads[:3]] == pytest.approx(after.tolist(), rel=1e-8)
    shares = (values[0] / values[0][..., :1]).log().mean(dim=(0, 1)).exp()
    assert seen.profiles[0].before == pytest.approx(shares.tolist(), rel=1e-8)
    assert seen.profiles[0].before[0] == 1
    assert all(0 < head.entropy <= math.log(17) for head in seen.heads)


def test_converted_or_not_the_first_layer_is_the_same() -> None:
    torch.manual_seed(1)
    plain = vit()
    torch.manual_seed(1)
    converted = vit()
    precondition_(converted)
    inputs = make_inputs(plain, "vit", images=None, text=None, seed=0)
    one, other = (measure_model(model, inputs, layers=LAYERS[:1], weights="") for model in (plain, converted))
    assert [head.kappa_after for head in one.heads] == pytest.approx([h.kappa_after for h in other.heads], rel=1e-9)


def test_says_what_cannot_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = gpt2()
    inputs = make_inputs(model, "gpt2", images=None, text=None, seed=0)
    with pytest.raises(ValueError, match=r"h\.7\.attn: not called on this input"):
        measure_model(model, inputs, layers=["h.0.attn", "h.7.attn"], weights="")
    wrong = Inputs(args=(torch.ones(1, 3, 8, 8),), kwargs={}, description="one small image")
    with pytest.raises(
        ValueError, match="VisionTransformer cannot be run on one small image: AssertionError: Input height"
    ):
        measure_model(vit(), wrong, layers=LAYERS, weights="")
    monkeypatch.setattr(measurement_module, "RUN_LIMIT", 1000)
    with pytest.raises(ValueError, match=r"big has 0\.0 billion parameters and is not run here"):
        check_size(nn.Linear(40, 40), "big")
