"""What adapters serve is known by its text: every way of putting other code under a known name is seen."""

import functools
import importlib
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from preconditioned_attention import precondition_, restore_
from preconditioned_attention.conversion.plan import plan_conversion
from preconditioned_attention.conversion.registry import find_adapter, unreviewed_reason
from preconditioned_attention.conversion.source_texts.known_texts import known_texts, reviewed_versions
from preconditioned_attention.layers import MultiheadAttention

LLAMA = "transformers.models.llama.modeling_llama"

# A class of every mechanism and library: where it is, and how a module of it is made.
KNOWN: dict[str, tuple[str, Callable[[type], nn.Module]]] = {
    "torch": ("torch.nn.MultiheadAttention", lambda cls: cls(8, 2)),
    "timm, by swap": ("timm.layers.Attention", lambda cls: cls(8, 2)),
    "timm, by table": ("timm.models.beit.Attention", lambda cls: cls(8, 2)),
    "timm, known swap": ("timm.models.efficientformer_v2.Attention2d", lambda cls: cls(8, resolution=4)),
    "torchvision": (
        "torchvision.models.swin_transformer.ShiftedWindowAttention",
        lambda cls: cls(8, [2, 2], [0, 0], 2),
    ),
    "open_clip": ("open_clip.transformer.Attention", lambda cls: cls(8, 2)),
    "x-transformers": ("x_transformers.x_transformers.Attention", lambda cls: cls(8, dim_head=4, heads=2)),
    "diffusers": ("diffusers.models.attention_processor.Attention", lambda cls: cls(8, heads=2, dim_head=4)),
    "transformers, by look-up": (f"{LLAMA}.LlamaAttention", lambda cls: cls(llama_config(), 0)),
    "transformers, by table": (
        "transformers.models.rembert.modeling_rembert.RemBertSelfAttention",
        lambda cls: cls(llama_config("rembert")),
    ),
    "transformers, by swap": (
        "transformers.models.nystromformer.modeling_nystromformer.NystromformerSelfAttention",
        lambda cls: cls(llama_config("nystromformer")),
    ),
    "our own": ("preconditioned_attention.layers.MultiheadAttention", lambda cls: cls(8, 2, precondition=None)),
}


def llama_config(model_type: str = "llama") -> object:
    import transformers

    return transformers.AutoConfig.for_model(
        model_type, hidden_size=8, num_attention_heads=2, num_key_value_heads=2, attn_implementation="sdpa"
    )


def known_class(name: str) -> type[nn.Module]:
    module, _, cls = KNOWN[name][0].rpartition(".")
    return getattr(importlib.import_module(module), cls)


def module_of(name: str) -> nn.Module:
    return KNOWN[name][1](known_class(name))


def assert_unknown(module: nn.Module) -> None:
    """Nothing serves it, and it is listed, whatever its forward looks like."""
    assert find_adapter(module) is None
    (entry, *_) = plan_conversion(nn.Sequential(module)).entries
    assert (entry.path, entry.status) == ("0", "unknown")
    assert "knows" in entry.reason or "were read" in entry.reason


@pytest.mark.parametrize("name", KNOWN)
def test_a_forward_that_somebody_assigned_to_the_class_is_unknown(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, cls = module_of(name), known_class(name)
    assert find_adapter(module) is not None
    monkeypatch.setattr(cls, "forward", lambda self, *args, **options: args[0])
    assert_unknown(module)
    monkeypatch.undo()
    assert find_adapter(module) is not None


@pytest.mark.parametrize("name", KNOWN)
def test_a_wrapper_round_the_forward_of_the_class_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`functools.wraps` gives it the name, the module and, to `inspect`, the source of what it wraps."""
    module, cls = module_of(name), known_class(name)
    forward = cls.forward

    @functools.wraps(forward)
    def halved(*args: object, **options: object) -> object:
        return forward(*args, **options)

    monkeypatch.setattr(cls, "forward", halved)
    assert_unknown(module)


HELPERS = {
    "torch": "merge_masks",
    "timm, known swap": "get_attention_biases",
    "torchvision": "get_relative_position_bias",
}


@pytest.mark.parametrize("name", HELPERS)
@pytest.mark.parametrize("way", ["patched", "subclass"])
def test_a_helper_that_the_forward_calls_counts(name: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cls, helper = known_class(name), HELPERS[name]

    def other(self: nn.Module, *args: object) -> object:
        return None

    if way == "subclass":
        assert_unknown(KNOWN[name][1](type("Subclass", (cls,), {helper: other})))
    else:
        monkeypatch.setattr(cls, helper, other)
        assert_unknown(module_of(name))


def test_a_subclass_that_changes_what_runs_is_unknown_and_one_that_does_not_is_served() -> None:
    from timm.models.volo import OutlookAttention
    from transformers.models.bloom.modeling_bloom import BloomAttention

    reshaped = type("Reshaped", (BloomAttention,), {"_reshape": lambda self, fused: fused})
    renamed = type("Renamed", (BloomAttention,), {"describe": lambda self: "the same"})
    config = llama_config("bloom")
    assert_unknown(reshaped(config, 0))
    assert find_adapter(renamed(config, 0)).mechanism == "pre-hook"
    assert find_adapter(type("Kept", (OutlookAttention,), {})(8, 2)) is not None


def test_a_function_of_the_file_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    module = module_of("torchvision")
    monkeypatch.setattr(
        "torchvision.models.swin_transformer.shifted_window_attention", lambda *args, **options: args[0]
    )
    assert_unknown(module)


def test_eager_attention_counts_and_rotations_of_queries_and_keys_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernel libraries replace the latter in transformers' files; what they return is no head's row."""
    module = module_of("transformers, by look-up")
    monkeypatch.setattr(f"{LLAMA}.apply_rotary_pos_emb", lambda q, k, *args: (q, k))
    assert find_adapter(module) is not None
    monkeypatch.setattr(f"{LLAMA}.eager_attention_forward", lambda module, q, k, v, *args, **options: (v, None))
    assert_unknown(module)


def test_the_part_that_computes_counts() -> None:
    module = module_of("x-transformers")
    assert find_adapter(module) is not None

    class OtherAttend(type(module.attend)):
        def forward(self, *args: object, **options: object) -> object:
            return super().forward(*args, **options)

    module.attend.__class__ = OtherAttend
    assert_unknown(module)


def test_a_processor_of_diffusers_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    module = module_of("diffusers")
    assert find_adapter(module).unsupported_reason(module) is None
    monkeypatch.setattr(type(module.processor), "__call__", lambda self, attn, hidden_states: hidden_states)
    reason = find_adapter(module).unsupported_reason(module)
    assert "its source text is not one that was read in diffusers 0.42.0 to" in reason


def test_what_is_converted_is_restored_whatever_became_of_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = nn.Sequential(module_of("timm, by table")), torch.randn(1, 5, 8)
    plain = model(x)
    precondition_(model)
    with monkeypatch.context() as patch:
        patch.setattr(known_class("timm, by table"), "forward", lambda self, x: x)
        restore_(model)
    assert torch.equal(model(x), plain)


def test_the_reason_names_the_versions_that_were_read(monkeypatch: pytest.MonkeyPatch) -> None:
    module = module_of("timm, by table")
    assert unreviewed_reason(nn.Linear(2, 2)) is None
    monkeypatch.setattr(known_class("timm, by table"), "forward", lambda self, x: x)
    assert reviewed_versions("timm").startswith("timm 1.0.16 to ")
    assert f"as read in {reviewed_versions('timm')}, which its adapter knows; register an adapter" in unreviewed_reason(
        module
    )


def test_without_a_source_code_has_to_be_where_its_class_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a frozen program."""
    monkeypatch.setattr(
        "preconditioned_attention.conversion.source_texts.reachable_code._code_digest", lambda code: None
    )
    module = module_of("timm, by table")
    assert find_adapter(module) is not None
    assert find_adapter(type("Subclass", (type(module),), {"forward": lambda self, x: x})(8, 2)) is None
    monkeypatch.setattr(type(module), "forward", lambda self, x: x)
    assert_unknown(module)


def test_our_own_layers_are_known_by_their_place() -> None:
    assert "preconditioned_attention" not in known_texts()
    assert find_adapter(MultiheadAttention(8, 2)).mechanism == "child module"
    assert_unknown(type("Mine", (MultiheadAttention,), {"forward": lambda self, x: F.softmax(x, -1) @ x})(8, 2))
