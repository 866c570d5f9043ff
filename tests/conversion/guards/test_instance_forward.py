import copy
import functools
import types
from collections.abc import Callable

import accelerate
import pytest
import timm
import torch
import transformers
from accelerate.hooks import (
    AlignDevicesHook,
    ModelHook,
    SequentialHook,
    add_hook_to_module,
    remove_hook_from_module,
    remove_hook_from_submodules,
)
from diffusers.hooks import (
    HookRegistry,
    PyramidAttentionBroadcastConfig,
    apply_layerwise_casting,
    apply_pyramid_attention_broadcast,
)
from diffusers.hooks import hooks as diffusers_hooks
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn

from preconditioned_attention import PreconditionConfig, precondition_, restore_
from preconditioned_attention.layers import MultiheadAttention
from tests.helpers.explicit import relative_error

SEQUENCES, IMAGES, TOKENS = torch.randn(3, 5, 16), torch.randn(2, 3, 32, 32), torch.arange(9)[None]


def encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 16, batch_first=True, dropout=0.0), 2)


def vit(name: str) -> nn.Module:
    model = timm.create_model(name, img_size=32, depth=2, embed_dim=24, num_heads=3, num_classes=5)
    for block in model.blocks:  # small layer scales would hide what attention does
        if hasattr(block.ls1, "gamma"):
            nn.init.ones_(block.ls1.gamma)
    return model


SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32, "vocab_size": 40}

# Mechanism -> a small model, its input, and the names of its attentions.
MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor, str]] = {
    "torch": (encoder, SEQUENCES, "self_attn"),
    "class swap": (lambda: vit("vit_tiny_patch16_224"), IMAGES, "attn"),
    "pre-hook": (lambda: vit("vit_relpos_base_patch16_224"), IMAGES, "attn"),
    "forward hook": (
        lambda: transformers.RemBertModel(
            transformers.RemBertConfig(**SIZES, input_embedding_size=24, output_embedding_size=24)
        ),
        TOKENS,
        "self",
    ),
    "attention interface": (lambda: transformers.BertModel(transformers.BertConfig(**SIZES)), TOKENS, "self"),
    "child module": (lambda: nn.Sequential(MultiheadAttention(16, 2, precondition=None)), SEQUENCES, "0"),
}


class Case:
    """A model, what it computes plain and converted, and how to check which of the two it does."""

    def __init__(self, mechanism: str) -> None:
        build, self.given, self.name = MODELS[mechanism]
        self.model = build().eval()
        self.plain = self.run(self.model)
        converted = copy.deepcopy(self.model)
        precondition_(converted, strict=True)
        self.preconditioned = self.run(converted)
        assert relative_error(self.plain, self.preconditioned) > 1e-3

    def run(self, model: nn.Module) -> Tensor:
        out = model(self.given)
        return out if isinstance(out, Tensor) else out[0]

    def attentions(self, model: nn.Module) -> list[nn.Module]:
        return [module for path, module in model.named_modules() if path.rpartition(".")[2] == self.name]

    def is_plain(self, model: nn.Module) -> bool:
        return torch.equal(self.run(model), self.plain)

    def is_preconditioned(self, model: nn.Module) -> bool:
        return torch.equal(self.run(model), self.preconditioned)


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def dispatch(model: nn.Module) -> None:
    accelerate.dispatch_model(model, {"": "cpu"}, force_hooks=True)


def hook_everything(model: nn.Module) -> None:
    """The attentions, what our hooks are on, and the preconditioners."""
    for module in model.modules():
        add_hook_to_module(module, ModelHook())


def hook_twice(model: nn.Module) -> None:
    for module in model.modules():
        add_hook_to_module(module, SequentialHook(ModelHook(), ModelHook()))
        add_hook_to_module(module, AlignDevicesHook("cpu"), append=True)


HOOKS = pytest.mark.parametrize("add", [dispatch, hook_everything, hook_twice])


@HOOKS
def test_converted_then_hooked(case: Case, add: Callable[[nn.Module], None]) -> None:
    model = case.model
    precondition_(model)
    add(model)
    assert case.is_preconditioned(model)
    restore_(model)
    assert case.is_plain(model)
    remove_hook_from_submodules(model)
    assert case.is_plain(model)
    precondition_(model, strict=True)
    assert case.is_preconditioned(model)


@HOOKS
def test_hooked_then_converted(case: Case, add: Callable[[nn.Module], None]) -> None:
    model = case.model
    add(model)
    precondition_(model, strict=True).verify(case.given)
    assert case.is_preconditioned(model)
    remove_hook_from_submodules(model)
    assert case.is_preconditioned(model)
    add(model)
    restore_(model)
    assert case.is_plain(model)
    remove_hook_from_submodules(model)
    assert case.is_plain(model)


@HOOKS
def test_copies_of_hooked_models(case: Case, add: Callable[[nn.Module], None]) -> None:
    model = case.model
    add(model)
    precondition_(model)
    twin = copy.deepcopy(model)
    restore_(model)
    assert case.is_plain(model)
    assert case.is_preconditioned(twin)
    remove_hook_from_module(twin, recurse=True)
    assert case.is_preconditioned(twin)
    restore_(twin)
    assert case.is_plain(twin)


class Diffusion(nn.Module):
    """A block of diffusers, by the name that its caches look for."""

    def __init__(self) -> None:
        super().__init__()
        attention = Attention(16, heads=2, dim_head=8, processor=AttnProcessor2_0())
        self.transformer_blocks = nn.ModuleList([nn.ModuleDict({"attn1": attention})])

    def forward(self, x: Tensor) -> Tensor:
        return self.transformer_blocks[0]["attn1"](x)


def broadcast(model: nn.Module) -> None:
    """Every second call returns what the one before has computed."""
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(0, 1000),
        current_timestep_callback=lambda: 500,
        spatial_attention_block_identifiers=("transformer_blocks",),
    )
    apply_pyramid_attention_broadcast(model, config)


def cast(model: nn.Module) -> None:
    apply_layerwise_casting(model, storage_dtype=torch.float64, compute_dtype=torch.float32)


@pytest.mark.parametrize("apply", [broadcast, cast])
@pytest.mark.parametrize("first", [False, True], ids=["converted first", "hooked first"])
def test_hooks_of_diffusers(apply: Callable[[nn.Module], None], first: bool) -> None:
    """Offloading, casting and caches: a pass that a cache spares is no attachment that fails."""
    model, x = Diffusion(), torch.randn(2, 5, 16)
    converted = copy.deepcopy(model)
    precondition_(converted)
    expected = [model(x), converted(x)]
    for change in (apply, precondition_) if first else (precondition_, apply):
        change(model)
    for _ in range(4):
        assert relative_error(model(x), expected[1]) <= 1e-6
    restore_(model)
    for _ in range(2):  # a cache returns what it kept
        restored = model(x)
    assert relative_error(restored, expected[0]) <= 1e-6


@pytest.mark.parametrize("between", [None, "accelerate"])
def test_hooks_of_diffusers_follow_a_class_swap(between: str | None) -> None:
    model, given = encoder().eval(), SEQUENCES
    plain = model(given)
    for layer in model.layers:
        HookRegistry.check_if_exists_or_initialize(layer.self_attn).register_hook(diffusers_hooks.ModelHook(), "first")
        if between:
            add_hook_to_module(layer.self_attn, ModelHook())
        HookRegistry.check_if_exists_or_initialize(layer.self_attn).register_hook(diffusers_hooks.ModelHook(), "second")
    precondition_(model, strict=True).verify(given)
    assert relative_error(model(given), plain) > 1e-3
    restore_(model)
    assert torch.equal(model(given), plain)


@pytest.mark.parametrize("gain", [None, 1.0])
def test_offloaded_weights_come_for_every_call(gain: float | None) -> None:
    """The gain too, which the fused form reads without calling its module."""
    model = vit("vit_tiny_patch16_224").eval()
    report = precondition_(model, PreconditionConfig(gain=gain))
    expected = model(IMAGES)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert relative_error(model(IMAGES), expected) <= 1e-5
    report.verify(IMAGES)


def wrapped(forward: Callable[..., object]) -> Callable[..., object]:
    @functools.wraps(forward)
    def call(*args: object, **kwargs: object) -> object:
        return forward(*args, **kwargs)

    return call


def another(module: nn.Module, *args: object, **kwargs: object) -> object:
    return type(module).forward(module, *args, **kwargs)


PATCHES: dict[str, Callable[[nn.Module], object]] = {
    "a function": lambda module: wrapped(module.forward),
    "a method": lambda module: types.MethodType(another, module),
    "a partial": lambda module: functools.partial(another, module),
    "another module's": lambda module: copy.deepcopy(module).forward,
    "a base class's": lambda module: types.MethodType(nn.Identity.forward, module),
}


@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize("hooked", [False, True], ids=["", "under Accelerate"])
def test_any_other_forward_is_refused(case: Case, patch: str, hooked: bool) -> None:
    model = case.model
    attentions = case.attentions(model)
    for attention in attentions:
        attention.forward = PATCHES[patch](attention)
    if hooked:
        hook_everything(model)
    with pytest.raises(ValueError, match=r"(?s)nothing to convert.*an instance's own forward: .*del module\.forward"):
        precondition_(model)
    remove_hook_from_submodules(model)
    for attention in attentions:
        del attention.forward
    precondition_(model)
    assert case.is_preconditioned(model)


def test_strict_refuses_one_of_two() -> None:
    model = encoder()
    patched = model.layers[1].self_attn
    patched.forward = wrapped(patched.forward)
    report = precondition_(model)
    assert [entry.status for entry in report.entries] == ["converted", "unsupported"]
    restore_(model)
    with pytest.raises(ValueError, match=r"(?s)strict=True.*nothing was changed"):
        precondition_(model, strict=True)


def test_a_forward_that_would_go_on_running_the_converted_one_is_not_restored(case: Case) -> None:
    """Only a class swap leaves one behind; what a wrapper does otherwise is its own business."""
    model = case.model
    swapped = precondition_(model).entries[0].mechanism == "class swap"
    attention = case.attentions(model)[0]
    attention.forward = wrapped(attention.forward)
    assert case.is_preconditioned(model)
    if swapped:
        with pytest.raises(ValueError, match=r"cannot restore .*del module\.forward"):
            restore_(model)
        assert case.is_preconditioned(model)
        del attention.forward
    restore_(model)
    assert case.is_plain(model)


def test_a_compiled_forward_is_refused(case: Case) -> None:
    model = case.model
    attention = case.attentions(model)[0]
    attention.forward = torch.compile(attention.forward, backend="eager")
    with pytest.raises(ValueError, match=r"cannot be changed in place: .* is compiled"):
        precondition_(model)
    hook_everything(model)
    with pytest.raises(ValueError, match=r"cannot be changed in place: .* is compiled"):
        precondition_(model)
