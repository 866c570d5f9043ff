"""Every attention class of timm, as a small module in float64, against attention that normalizes inside itself."""

import pytest
import timm
import torch
from timm.layers import attention2d, attention_pool
from timm.models import cait, efficientvit_mit, eva, nest, xcit
from torch import Tensor, nn

from preconditioned_attention import PreconditionConfig, precondition_, restore_
from preconditioned_attention.conversion.class_names import class_name
from preconditioned_attention.conversion.plan import convertible_attention
from preconditioned_attention.conversion.registry import find_adapter, registered_adapters
from tests.helpers.explicit import relative_error
from tests.helpers.oracle import compare, jitter_, normalizing_inside
from tests.helpers.timm_cases import CASES, MODELS, Case, rand


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_against_attention_that_normalizes_inside(case: Case, training: bool) -> None:
    module = jitter_(case.build().double())
    module.train(training)
    inputs = case.inputs()
    adapter = find_adapter(module)
    for fused in (True, False) if hasattr(module, "fused_attn") else (None,):
        if fused is not None:
            module.fused_attn = fused
        proof = compare(module, *inputs, include="all", channels=adapter.kind == "channel", reference=case.reference)
        assert proof.error <= 1e-10
        assert proof.effect > 1e-3
        (entry,) = proof.report.entries
        assert (entry.status, entry.class_name) == ("converted", class_name(type(module)))
        assert case.reference or proof.widths == {entry.head_dim}
        # A gain is one number per head, so it fails where the number of heads is wrong.
        with_gain = PreconditionConfig(gain=1.0)
        gained = compare(
            module,
            *inputs,
            config=with_gain,
            include="all",
            channels=adapter.kind == "channel",
            reference=case.reference,
        )
        assert gained.error <= 1e-10


def test_multi_query_attention_by_einsum() -> None:
    module = jitter_(attention2d.MultiQueryAttention2d(12, 10, num_heads=3, value_dim=6).double())
    module.einsum = True
    assert compare(module, rand(2, 12, 4, 4), include="all").error <= 1e-10


def test_every_class_of_the_table_is_proved() -> None:
    served = {
        name
        for name, adapter in registered_adapters()
        if name.startswith("timm.") and adapter.mechanism in ("pre-hook", "forward hook")
    }
    proved = {class_name(type(case.build())) for case in CASES.values()}
    assert served - proved == {"timm.layers.attention.Attention"}  # proved in test_timm


def test_a_module_without_the_point_or_the_width_is_refused() -> None:
    older = eva.EvaAttention(12, 3, scale_norm=False)
    del older.norm
    changed = cait.TalkingHeadAttn(12, 3)
    changed.proj = nn.Identity()
    reasons = [find_adapter(module).unsupported_reason(module) for module in (older, changed)]
    assert "it has no child 'norm'" in reasons[0]
    assert "how wide a head" in reasons[1]


def test_a_subclass_with_a_forward_of_its_own_is_not_served() -> None:
    class Other(nest.Attention):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    class Same(nest.Attention):
        pass

    assert find_adapter(Other(12, 3)) is None
    assert find_adapter(Same(12, 3)) is find_adapter(nest.Attention(12, 3))


def test_kinds_are_converted_by_option_only() -> None:
    modules = nn.ModuleList(
        [cait.ClassAttn(12, 3), attention_pool.AttentionPoolLatent(12, num_heads=3), efficientvit_mit.LiteMLA(16, 16)]
    )
    modules.append(xcit.XCA(12, 3))
    report = precondition_(modules)
    assert [entry.status for entry in report.entries] == ["skipped"] * 3 + ["converted"]


@pytest.mark.parametrize("name", ["LeViT, convolutions", "SHViT", "cascade", "TinyViT", "MobileNetV4"])
def test_reparameterisation_keeps_it(name: str) -> None:
    """In float32, for some of timm's fused convolutions are made in it."""
    holder = nn.Sequential(jitter_(CASES[name].build()))
    holder.eval()
    x = CASES[name].inputs()[0].float()
    plain = holder(x)
    precondition_(holder, include="all")
    expected = holder(x)
    fused = timm.models.reparameterize_model(holder, inplace=True)(x)
    assert relative_error(fused, expected) <= 1e-5
    assert relative_error(fused, plain) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_whole_models(name: str) -> None:
    model = jitter_(timm.create_model(name).double(), 0.02)
    model.eval()
    sites = [site for site in convertible_attention(model) if site[2].kind != "linear"]
    channel = [type(module) for _, module, adapter in sites if adapter.kind == "channel"]
    token = [type(module) for _, module, adapter in sites if adapter.kind != "channel"]
    x = rand(1, *model.default_cfg["input_size"])
    with torch.no_grad():
        plain = model(x)
        with normalizing_inside(model, *token) as rows, normalizing_inside(model, *channel, channels=True) as more:
            inside = model(x)
        report = precondition_(model, include=("softmax", "class_attention", "pooling", "channel"))
        assert len(report.converted) == len(sites) == len(rows + more)
        assert relative_error(model(x), inside) <= 1e-10
        assert relative_error(plain, inside) > 1e-6
        restore_(model)
        assert torch.equal(model(x), plain)
