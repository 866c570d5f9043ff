import copy
import io
import subprocess
import sys
import textwrap

import pytest
import timm
import torch
import transformers
from torch import Tensor, nn

import preconditioned_attention as pa
from preconditioned_attention import PreconditionConfig, is_preconditioned, precondition_, restore_
from preconditioned_attention.conversion import Adapter, HeadShape, register_adapter
from preconditioned_attention.conversion import registry as registry_module
from preconditioned_attention.ops.flash.cpu import FLASH_CPU


def vit(**options) -> nn.Module:
    sizes = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 3, "num_classes": 5}
    return timm.create_model("vit_tiny_patch16_224", **sizes | options).double().eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, dtype=torch.float64)


class Unregistered(nn.Module):
    """Attention that no adapter knows."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return (q @ k.transpose(-2, -1)).softmax(dim=-1) @ v


def test_converts_and_reports(images: Tensor) -> None:
    model = vit()
    before = model(images)
    report = precondition_(model)
    assert is_preconditioned(model)
    assert (model(images) - before).abs().max() > 1e-3, (
        "the conversion must have an effect for the other tests to mean anything"
    )
    assert [entry.path for entry in report.converted] == ["blocks.0.attn", "blocks.1.attn"]
    assert report.left_out == ()
    entry = report.entries[0]
    assert (entry.num_heads, entry.head_dim, entry.mechanism) == (3, 8, "class swap")


@pytest.mark.parametrize("config", [PreconditionConfig(), PreconditionConfig(gain=0.1)], ids=["plain", "gain"])
def test_restore_is_bit_for_bit(images: Tensor, config: PreconditionConfig) -> None:
    model = vit()
    before, state = model(images), copy.deepcopy(model.state_dict())
    precondition_(model, config)
    assert restore_(model) == 2
    assert not is_preconditioned(model)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(model(images), before)
    assert [type(module) for module in model.modules()] == [type(module) for module in vit().modules()]
    precondition_(model, config)  # and again


def test_a_second_model_and_torch_itself_are_untouched(images: Tensor) -> None:
    other = vit()
    before, sdpa, classes = (
        other(images),
        torch.nn.functional.scaled_dot_product_attention,
        [type(m) for m in other.modules()],
    )
    precondition_(vit())
    assert torch.equal(other(images), before)
    assert torch.nn.functional.scaled_dot_product_attention is sdpa
    assert [type(m) for m in other.modules()] == classes
    assert [type(m) for m in vit().modules()] == classes


@pytest.mark.parametrize("marker", [True, False])
def test_state_dict_keys(marker: bool) -> None:
    model = vit()
    keys = list(model.state_dict())
    precondition_(model, marker=marker)
    extra = [key for key in model.state_dict() if key not in keys]
    names = ["preconditioner.requires_preconditioned_attention"]
    assert extra == ([f"blocks.{i}.attn.{name}" for i in (0, 1) for name in names] if marker else [])
    assert [key for key in model.state_dict() if key in keys] == keys


def test_checkpoints_do_not_cross_silently() -> None:
    plain, converted = vit(), vit()
    precondition_(converted)
    with pytest.raises(RuntimeError, match=r"blocks\.0\.attn\.preconditioner\.requires_preconditioned_attention"):
        plain.load_state_dict(converted.state_dict())
    with pytest.warns(UserWarning, match="does not say that it was trained with preconditioned attention"):
        converted.load_state_dict(plain.state_dict())
    with pytest.warns(UserWarning, match="does not say"):  # a backbone's own state dict carries the mark along
        converted.blocks[0].load_state_dict(plain.blocks[0].state_dict())
    converted.load_state_dict(copy.deepcopy(converted.state_dict()))


def test_gain_is_the_only_new_parameter() -> None:
    model = vit()
    names = {name for name, _ in model.named_parameters()}
    precondition_(model, PreconditionConfig(gain=0.2))
    new = {name: p for name, p in model.named_parameters() if name not in names}
    assert set(new) == {"blocks.0.attn.preconditioner.gain", "blocks.1.attn.preconditioner.gain"}
    assert all(p.shape == (3,) and p.dtype == torch.float64 and p.requires_grad for p in new.values())


def test_deepcopy_and_pickle(images: Tensor) -> None:
    model = vit()
    precondition_(model, PreconditionConfig(gain=0.3))
    expected = model(images)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        assert torch.equal(other(images), expected)
        with torch.no_grad():
            other.blocks[0].attn.preconditioner.gain.mul_(2.0)
        assert not torch.equal(other(images), expected), "the copy must use its own preconditioner"
        restore_(other)
    assert torch.equal(model(images), expected)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_in_one_graph_forward_and_backward(images: Tensor, backend: str) -> None:
    model = vit(depth=1)
    precondition_(model)
    expected = model(images)
    expected_grads = torch.autograd.grad(expected.square().sum(), list(model.parameters()))
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    actual = compiled(images)
    actual_grads = torch.autograd.grad(actual.square().sum(), list(model.parameters()))
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(actual_grads, expected_grads, rtol=1e-9, atol=1e-11)


def test_export(images: Tensor) -> None:
    model = vit(depth=1)
    precondition_(model)
    exported = torch.export.export(model, (images,)).module()
    torch.testing.assert_close(exported(images), model(images), rtol=1e-12, atol=1e-14)


def test_filter_picks_and_the_report_says_so(images: Tensor) -> None:
    model = vit()
    report = precondition_(model, filter_fn=lambda module, path: path == "blocks.1.attn")
    assert [(e.path, e.status) for e in report.entries] == [
        ("blocks.0.attn", "skipped"),
        ("blocks.1.attn", "converted"),
    ]
    assert "filter_fn" in report.entries[0].reason
    precondition_(model, PreconditionConfig(gradient="stop"), filter_fn=lambda module, path: path == "blocks.0.attn")
    assert [b.attn.preconditioner.config.gradient for b in model.blocks] == ["stop", "full"]


def test_strict_refuses_before_changing_anything() -> None:
    model = nn.Sequential(vit(), Unregistered())
    classes = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=r"strict=True[\s\S]*Unregistered[\s\S]*unknown"):
        precondition_(model, strict=True)
    assert [type(module) for module in model.modules()] == classes
    assert not is_preconditioned(model)
    report = precondition_(model)
    assert [e.path for e in report.left_out] == ["1"]
    restore_(model)
    strict_ok = precondition_(model[0], strict=True)
    assert len(strict_ok.converted) == 2


def test_nothing_to_convert_lists_what_was_seen() -> None:
    with pytest.raises(ValueError, match="no module of it seems to compute attention"):
        precondition_(nn.Sequential(nn.Linear(3, 3), nn.Softmax(dim=-1)))
    with pytest.raises(ValueError, match=r"nothing to convert[\s\S]*Unregistered[\s\S]*register_adapter"):
        precondition_(Unregistered())
    with pytest.raises(ValueError, match=r"nothing to convert[\s\S]*left out by filter_fn"):
        precondition_(vit(), filter_fn=lambda module, path: False)


def test_converting_twice_is_an_error_and_changes_nothing(images: Tensor) -> None:
    model = vit()
    precondition_(model)
    before = model(images)
    with pytest.raises(ValueError, match=r"already preconditioned: 'blocks\.0\.attn', 'blocks\.1\.attn'.*restore_"):
        precondition_(model, PreconditionConfig(gradient="stop"))
    assert torch.equal(model(images), before)


def test_restoring_a_plain_model_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to restore"):
        restore_(vit())


def test_compiled_models_are_refused() -> None:
    whole, block, script = torch.compile(vit()), vit(), nn.Sequential(torch.jit.script(nn.Linear(2, 2)))
    block.blocks[0].compile()
    for model, where in (
        (whole, "it is compiled"),
        (block, r"submodule 'blocks\.0' is compiled"),
        (script, "TorchScript"),
    ):
        with pytest.raises(ValueError, match=where):
            precondition_(model)
    converted = vit()
    precondition_(converted)
    with pytest.raises(ValueError, match=r"restore_ first, then torch\.compile"):
        restore_(torch.compile(converted))


def test_wrong_arguments_are_named() -> None:
    for arguments, words in (
        (("vit",), "model must be a torch.nn.Module; got str"),
        ((vit(), {"gradient": "stop"}), "config must be a PreconditionConfig"),
    ):
        with pytest.raises(TypeError, match=words):
            precondition_(*arguments)
    with pytest.raises(TypeError, match="filter_fn must be a function"):
        precondition_(vit(), filter_fn="blocks")
    with pytest.raises(ValueError, match=r"placement='post_skip'.*leave placement at 'pre_skip'"):
        precondition_(vit(), PreconditionConfig(placement="post_skip"))


def test_a_failure_half_way_leaves_the_model_as_it_was(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = vit()
    before, classes = model(images), [type(module) for module in model.modules()]
    adapter = registry_module.find_adapter(model.blocks[1].attn)
    attach = type(adapter).attach

    def fail_at_the_second(self: Adapter, module: nn.Module, preconditioner: nn.Module) -> None:
        attach(self, module, preconditioner)
        if module is model.blocks[1].attn:
            raise MemoryError

    monkeypatch.setattr(type(adapter), "attach", fail_at_the_second)
    with pytest.raises(MemoryError):
        precondition_(model)
    assert [type(module) for module in model.modules()] == classes
    assert torch.equal(model(images), before)


def test_a_third_party_adapter_and_the_options_by_kind() -> None:
    class Pool(Unregistered):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    name = registry_module.class_name(Pool)

    @register_adapter(name)
    class PoolAdapter(Adapter):
        kind = "pooling"
        mechanism = "test"

        def shape(self, module: nn.Module) -> HeadShape:
            return HeadShape(1, 8)

        def attach(self, module: nn.Module, preconditioner: nn.Module) -> None:
            module.register_forward_hook(lambda m, args, out: m.preconditioner(out))

        def detach(self, module: nn.Module) -> None:
            module._forward_hooks.clear()

    try:
        model, x = Pool(), torch.randn(2, 5, 8)
        with pytest.raises(
            ValueError, match=r"pooling is not included; include=\('softmax', 'channel', 'pooling'\) converts"
        ):
            precondition_(model)
        precondition_(model, include=("pooling",))
        torch.testing.assert_close(model(x).norm(dim=-1), torch.ones(2, 5))
        restore_(model)
        assert is_preconditioned(model) is False
    finally:
        del registry_module._adapters[name]


def test_training_mode_reaches_the_preconditioner() -> None:
    model = vit()
    precondition_(model)
    assert not any(module.training for module in model.modules())
    assert all(module.training for module in model.train().modules())


def test_a_pickled_model_is_still_preconditioned_in_a_fresh_process(tmp_path, images: Tensor) -> None:
    model = vit()
    precondition_(model)
    torch.save((model, images, model(images)), tmp_path / "model.pt")
    script = f"""
        import torch
        model, images, expected = torch.load({str(tmp_path / "model.pt")!r}, weights_only=False)
        assert torch.allclose(model(images), expected, rtol=1e-12, atol=1e-13)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)


def test_public_names_lead_here() -> None:
    assert pa.precondition_ is precondition_
    assert pa.restore_ is restore_


def encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 16, batch_first=True), 2).eval()


def bert() -> nn.Module:
    config = transformers.BertConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32, vocab_size=40
    )
    return transformers.BertModel(config).eval()


@pytest.mark.parametrize(
    ("build", "given"),
    [
        (lambda: vit().float(), torch.randn(2, 3, 32, 32)),
        (encoder, torch.randn(3, 5, 16)),
        (bert, torch.arange(9)[None]),
    ],
    ids=["timm", "torch.nn", "transformers"],
)
def test_converted_models_compute_by_the_fused_form(build, given: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = []
    attend = FLASH_CPU.attend
    monkeypatch.setattr(FLASH_CPU, "attend", lambda call: computed.append(call) or attend(call))
    model = build()
    precondition_(model)
    model(given)
    assert len(computed) == 2


def test_an_explicit_backend_is_honored_or_refused() -> None:
    """Fused attention takes it; attention that keeps its own kernel and has its rows scaled does not, and says so."""
    config = PreconditionConfig(backend="flash")
    davit = timm.create_model("davit_tiny", num_classes=2, depths=(1, 1, 1, 1)).eval()
    report = precondition_(davit, config)
    assert {entry.class_name.rpartition(".")[2] for entry in report.converted} == {"WindowAttention"}
    assert {entry.class_name.rpartition(".")[2] for entry in report.left_out} == {"ChannelAttention"}
    assert all("backend='flash' computes attention" in entry.reason for entry in report.left_out)
    davit(torch.randn(1, 3, 64, 64))
    xcit = timm.create_model("xcit_nano_12_p16_224", depth=1, num_classes=2)
    with pytest.raises(ValueError, match=r"(?s)nothing to convert.*backend='flash' computes attention"):
        precondition_(xcit, config)
    precondition_(xcit, PreconditionConfig(backend="composition"))


def test_an_explicit_backend_that_a_model_goes_round_is_an_error(
    images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = vit()
    precondition_(model, PreconditionConfig(backend="flash"))
    model(images)
    monkeypatch.setattr(model.blocks[0].attn, "fused_attn", False)
    with pytest.raises(ValueError, match="backend='flash' computes attention, and this module computed its own"):
        model(images)
