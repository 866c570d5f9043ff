"""diffusers: the attention of its U-Nets and transformers.

A module holds the projections and a processor computes. In the processors named below the heads' outputs, merged head
by head, go into `to_out[0]` and, where a second stream is attended to in the same call, into `to_add_out`, with
nothing in between. Single-stream blocks have no projection in the attention: it returns the heads' outputs, and the
block projects them together with its feed-forward part. Flux 2 does the latter inside the attention.

A processor can be replaced at any time, so a converted module looks at its processor whenever it is called.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from ...layers import Preconditioner
from ..mechanisms import Layout, OutputHook, PreHook
from ..registry import HeadShape, class_name, read_int, register_adapter

_SHARED = "diffusers.models.attention_processor."
_MODELS = "diffusers.models.transformers.transformer_"

# Read in diffusers 0.42.1: each attends once, and hands the merged heads and nothing else to the points.
KNOWN_PROCESSORS = frozenset(
    {
        *(_SHARED + name for name in ("AttnProcessor", "AttnProcessor2_0", "FusedAttnProcessor2_0")),
        *(_SHARED + name for name in ("AttnAddedKVProcessor", "AttnAddedKVProcessor2_0", "XFormersAttnProcessor")),
        *(_SHARED + name for name in ("SlicedAttnProcessor", "SlicedAttnAddedKVProcessor")),
        *(_SHARED + name for name in ("XFormersAttnAddedKVProcessor", "XFormersJointAttnProcessor")),
        *(_SHARED + name for name in ("JointAttnProcessor2_0", "FusedJointAttnProcessor2_0")),
        *(_SHARED + name for name in ("AuraFlowAttnProcessor2_0", "FusedAuraFlowAttnProcessor2_0")),
        *(_SHARED + name for name in ("CogVideoXAttnProcessor2_0", "FusedCogVideoXAttnProcessor2_0")),
        *(_SHARED + name for name in ("HunyuanAttnProcessor2_0", "FusedHunyuanAttnProcessor2_0")),
        *(_SHARED + name for name in ("AllegroAttnProcessor2_0", "StableAudioAttnProcessor2_0")),
        "diffusers.models.transformers.sana_transformer.SanaAttnProcessor2_0",
        *(_MODELS + name for name in ("bria.BriaAttnProcessor", "bria_fibo.BriaFiboAttnProcessor")),
        *(_MODELS + name for name in ("chronoedit.WanAttnProcessor", "cogview4.CogView4AttnProcessor")),
        *(_MODELS + name for name in ("cosmos.CosmosAttnProcessor2_0", "flux.FluxAttnProcessor")),
        *(_MODELS + name for name in ("flux2.Flux2AttnProcessor", "flux2.Flux2ParallelSelfAttnProcessor")),
        *(_MODELS + name for name in ("glm_image.GlmImageAttnProcessor", "longcat_image.LongCatImageAttnProcessor")),
        *(_MODELS + name for name in ("ltx.LTXVideoAttnProcessor", "lumina2.Lumina2AttnProcessor2_0")),
        *(_MODELS + name for name in ("ovis_image.OvisImageAttnProcessor", "skyreels_v2.SkyReelsV2AttnProcessor")),
        *(_MODELS + name for name in ("qwenimage.QwenDoubleStreamAttnProcessor2_0", "wan.WanAttnProcessor")),
        *(_MODELS + name for name in ("wan_animate.WanAttnProcessor", "z_image.ZSingleStreamAttnProcessor")),
    }
)


def _unknown_processor(module: nn.Module) -> str | None:
    """Why the module's present processor cannot be served, or None."""
    name = class_name(type(module.processor))
    if name in KNOWN_PROCESSORS:
        return None
    return (
        f"its processor {name} is not one that is known to hand one attention's heads, and nothing else, to the "
        "output projections (IP-Adapter and PAG, for example, add to them or go around them)"
    )


def check_processor(module: nn.Module, args: tuple[Any, ...]) -> None:
    """A forward pre-hook that refuses a processor which came after the conversion and is not known."""
    reason = _unknown_processor(module)
    if reason is not None:
        raise ValueError(
            f"this attention is preconditioned, and {reason}; go back to the processor that it was converted with "
            "(set_attn_processor), or call restore_(model) first"
        )


class ProcessorHooks(PreHook):
    """A row hook on every output projection, or an output hook on a module that has none."""

    candidates: ClassVar[tuple[str, ...]] = ("to_out.0", "to_add_out")

    def points(self, module: nn.Module) -> tuple[str, ...]:
        """The output projections that this module has."""
        names = {name for name, _ in module.named_modules()}
        return tuple(point for point in self.candidates if point in names)

    def refusal(self, module: nn.Module) -> str | None:
        """A processor that is not known."""
        return _unknown_processor(module)

    def shape(self, module: nn.Module) -> HeadShape:
        """From the module's attributes."""
        heads, width = read_int(module, "heads"), read_int(module, "inner_dim")
        return HeadShape(heads, width // heads if heads and width else None)

    def attach(self, module: nn.Module, preconditioner: Preconditioner) -> None:
        """Hook the projections, or the module if it has none, and watch over its processor."""
        if not self.points(module):
            module.register_forward_hook(OutputHook(preconditioner, self.layout(module)))
        super().attach(module, preconditioner)
        module.register_forward_pre_hook(check_processor)

    def detach(self, module: nn.Module) -> None:
        """Remove every hook of ours."""
        super().detach(module)
        for key in [key for key, hook in module._forward_hooks.items() if isinstance(hook, OutputHook)]:
            del module._forward_hooks[key]
        for key in [key for key, hook in module._forward_pre_hooks.items() if hook is check_processor]:
            del module._forward_pre_hooks[key]


@register_adapter(
    _SHARED + "Attention",
    _MODELS + "bria.BriaAttention",
    _MODELS + "bria_fibo.BriaFiboAttention",
    _MODELS + "flux.FluxAttention",
    _MODELS + "flux2.Flux2Attention",
    _MODELS + "longcat_image.LongCatImageAttention",
    _MODELS + "ltx.LTXAttention",
    _MODELS + "ovis_image.OvisImageAttention",
)
class AttentionHooks(ProcessorHooks):
    """Self-, cross- and joint attention, with or without projections of its own."""


@register_adapter(
    _MODELS + "chronoedit.WanAttention",
    _MODELS + "skyreels_v2.SkyReelsV2Attention",
    _MODELS + "wan.WanAttention",
    _MODELS + "wan_animate.WanAttention",
)
class WanHooks(ProcessorHooks):
    """Self- and cross-attention of Wan and of the models made from it."""

    def refusal(self, module: nn.Module) -> str | None:
        """Cross-attention to an image beside the text."""
        if getattr(module, "add_k_proj", None) is not None:
            return "it sums two attentions, to the text and to an image, before the first module that sees them"
        return super().refusal(module)


@register_adapter(_MODELS + "flux2.Flux2ParallelSelfAttention")
class ParallelHooks(ProcessorHooks):
    """Flux 2's single-stream blocks: `to_out` sees the merged heads, and the feed-forward part behind them."""

    candidates = ("to_out",)

    def layout(self, module: nn.Module) -> Layout:
        """The heads are what is first of the merged entries."""
        shape = self.shape(module)
        assert shape.num_heads is not None
        assert shape.head_dim is not None
        return Layout(shape.head_dim, width=shape.num_heads * shape.head_dim)
