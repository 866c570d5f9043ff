"""diffusers: the attention of its U-Nets, transformers and autoencoders.

A module holds the projections and a processor computes (`processors` says which are served). The heads'
outputs, merged head by head, go into the output projections of the table below, one for every stream that is attended
to in the same call, with nothing in between. Single-stream blocks have no projection in the attention: it returns the
heads' outputs, and the block projects them together with its feed-forward part. Flux 2 does the latter inside the
attention. The autoencoders' blocks of one head compute on their own.

A processor can be replaced at any time, so a converted module looks at its processor whenever it is called.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from ....layers import Preconditioner
from ...mechanisms import Layout, OutputHook, PostHook, PreHook
from ...registry import HeadShape, composites_named, read_int, register_named
from .processors import named, processor_refusal

_MODELS = "diffusers.models."
_SHARED = _MODELS + "attention_processor."
_TRANSFORMERS = _MODELS + "transformers.transformer_"
_AUTOENCODERS = _MODELS + "autoencoders.autoencoder_"

_TO_OUT = ("to_out.0", "to_add_out")

# The output projections -> the classes that have them.
POINTS: dict[tuple[str, ...], tuple[str, ...]] = {
    _TO_OUT: (
        *named(_SHARED, "Attention MochiAttention"),
        *named(
            _TRANSFORMERS,
            """
            anyflow.AnyFlowAttention anyflow_far.AnyFlowAttention bria.BriaAttention bria_fibo.BriaFiboAttention
            bria_fibo2.BriaFibo2Attention ernie_image.ErnieImageAttention flux.FluxAttention flux2.Flux2Attention
            flux3.Flux3Attention helios.HeliosAttention ideogram4.Ideogram4Attention
            longcat_audio_dit.AudioDiTAttention longcat_image.LongCatImageAttention ltx.LTXAttention
            minimax_h3.MiniMaxH3Attention minimax_music3.MiniMaxMusic3Attention motif_video.MotifVideoAttention
            motif_video.MotifVideoCrossAttention ovis_image.OvisImageAttention prx.PRXAttention
            qwenimage21.QwenImage21Attention
            """,
        ),
        _AUTOENCODERS + "kl_kvae_audio.KVAEAudioAttention",
        _AUTOENCODERS + "kl_minimax_h3.MiniMaxH3VideoAttention",
        _MODELS + "autoencoders.ltx2_diffusion_decoder.LTX2VideoVaeNeighborhoodAttention",
        _MODELS + "transformers.ace_step_transformer.AceStepAttention",
    ),
    ("to_out", "to_out_t"): (_TRANSFORMERS + "hidream_image.HiDreamAttention",),
    ("to_out", "to_add_out"): (_TRANSFORMERS + "cosmos3.Cosmos3PackedMoTAttention",),
    ("to_out",): (
        _MODELS + "transformers.minimax_music3_rvq_depth_decoder.MiniMaxMusic3DepthAttention",
        _TRANSFORMERS + "wan_animate.WanAnimateFaceBlockCrossAttention",
    ),
    ("o_proj",): (_MODELS + "condition_embedders.condition_embedder_anima.AnimaTextConditionerAttention",),
    ("out_layer",): (
        _TRANSFORMERS + "kandinsky.Kandinsky5Attention",
        _TRANSFORMERS + "kandinsky6.Kandinsky6Attention",
        _TRANSFORMERS + "kandinsky6_sr.Kandinsky6SRAttention",
    ),
    ("proj",): (_TRANSFORMERS + "sana_wm.MultiHeadCrossAttention",),
    ("img_attn_proj", "txt_attn_proj"): (
        _TRANSFORMERS + "joyimage.JoyImageAttention",
        _TRANSFORMERS + "joyimage_edit_plus.JoyImageEditPlusAttention",
    ),
}


def check_processor(module: nn.Module, args: tuple[Any, ...]) -> None:
    """A forward pre-hook that refuses a processor which came after the conversion and is not known."""
    reason = processor_refusal(module.processor)
    if reason is not None:
        raise ValueError(
            f"this attention is preconditioned, and {reason}; go back to the processor that it was converted with "
            "(set_attn_processor), or call restore_(model) first"
        )


class StreamsHook(OutputHook):
    """An output hook for every stream that attention without projections returns."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Precondition what comes out, one tensor or several."""
        if isinstance(output, Tensor):
            return self.layout.apply(self.preconditioner, output)
        return tuple(x if x is None else self.layout.apply(self.preconditioner, x) for x in output)


class HeadHooks(PreHook):
    """A row hook on every output projection that a module has."""

    candidates: ClassVar[tuple[str, ...]]
    form: ClassVar[Literal["merged", "channels"]] = "merged"

    def points(self, module: nn.Module) -> tuple[str, ...]:
        """The output projections that this module has."""
        names = {name for name, _ in module.named_modules()}
        return tuple(point for point in self.candidates if point in names)

    def shape(self, module: nn.Module) -> HeadShape:
        """From the module's attributes; the autoencoders' blocks have one head and do not say so."""
        heads = read_int(module, "heads", "num_heads", "num_attention_heads") or 1
        width = read_int(module, "inner_dim")
        if width is None and self.points(module):
            weights = module.get_submodule(self.points(module)[0]).parameters()
            width = next(weight.shape[1] for weight in weights if weight.dim() > 1)
        return HeadShape(heads, width // heads if width else None)

    def layout(self, module: nn.Module) -> Layout:
        """Head by head, along the last axis or along the channels."""
        head_dim = self.shape(module).head_dim
        assert head_dim is not None, "there is a projection, or the module says how wide it is"
        return Layout(head_dim, self.form)


class ProcessorHooks(HeadHooks):
    """Attention that leaves computing to a processor: hooks on its projections, or on itself if it has none."""

    def refusal(self, module: nn.Module) -> str | None:
        """A processor that is not known."""
        return processor_refusal(module.processor)

    def attach(self, module: nn.Module, preconditioner: Preconditioner) -> None:
        """Hook the projections, or the module if it has none, and watch over its processor."""
        if not self.points(module):
            module.register_forward_hook(StreamsHook(preconditioner, self.layout(module)))
        super().attach(module, preconditioner)
        module.register_forward_pre_hook(check_processor)

    def detach(self, module: nn.Module) -> None:
        """Remove every hook of ours."""
        super().detach(module)
        for key in [key for key, hook in module._forward_hooks.items() if isinstance(hook, StreamsHook)]:
            del module._forward_hooks[key]
        for key in [key for key, hook in module._forward_pre_hooks.items() if hook is check_processor]:
            del module._forward_pre_hooks[key]


def _register(base: type[HeadHooks], classes: tuple[str, ...], points: tuple[str, ...], **options: Any) -> None:
    register_named(*classes)(type(base.__name__, (base,), {"__module__": __name__, "candidates": points, **options}))


for _points, _classes in POINTS.items():
    _register(ProcessorHooks, _classes, _points)


class SummingHooks(ProcessorHooks):
    """Classes that may attend to an image beside the text."""

    def refusal(self, module: nn.Module) -> str | None:
        """Cross-attention to an image beside the text."""
        if getattr(module, "add_k_proj", None) is not None:
            return "it sums two attentions, to the text and to an image, before the first module that sees them"
        return super().refusal(module)


class GatedHooks(ProcessorHooks):
    """Classes that may have a gate per head."""

    def refusal(self, module: nn.Module) -> str | None:
        """A gate, which a row scaling after it would undo."""
        if module.to_gate_logits is not None:
            return "a gate per head multiplies the heads' outputs before the first module that sees them"
        return super().refusal(module)


class MaybeDifferentialHooks(ProcessorHooks):
    """Classes that may be differential."""

    def refusal(self, module: nn.Module) -> str | None:
        """Differential attention."""
        if module.use_differential:
            return "differential attention: it subtracts one attention's output from another's"
        return super().refusal(module)


_register(
    SummingHooks,
    named(
        _TRANSFORMERS,
        """
        chronoedit.WanAttention skyreels_v2.SkyReelsV2Attention wan.WanAttention wan_animate.WanAttention
        wan_animate_2.WanAnimate2Attention
        """,
    ),
    _TO_OUT,
)
_register(
    GatedHooks,
    (_TRANSFORMERS + "ltx2.LTX2Attention", _TRANSFORMERS + "sana_wm_refiner.SanaWMLTX2Attention"),
    _TO_OUT,
)
_register(
    MaybeDifferentialHooks,
    (
        _AUTOENCODERS + "same.SAMEAttention",
        _TRANSFORMERS + "stable_audio3.StableAudio3CrossAttention",
        _TRANSFORMERS + "stable_audio3.StableAudio3SelfAttention",
    ),
    ("to_out",),
)
_register(ProcessorHooks, (_AUTOENCODERS + "kl_cosmos.CosmosCausalAttention",), ("to_out.0",), form="channels")
_register(ProcessorHooks, (_AUTOENCODERS + "mmaudio.MMAudioAttnBlock1D",), ("proj_out",), form="channels")
_register(
    HeadHooks,
    named(
        _AUTOENCODERS,
        """
        kl_hunyuanimage.HunyuanImageAttentionBlock kl_qwenimage.QwenImageAttentionBlock
        kl_qwenimage21.QwenImage21AttentionBlock kl_wan.WanAttentionBlock
        """,
    ),
    ("proj",),
    form="channels",
)
_register(
    HeadHooks,
    named(
        _AUTOENCODERS,
        """
        kl_hunyuanimage_refiner.HunyuanImageRefinerAttnBlock kl_hunyuanvideo15.HunyuanVideo15AttnBlock
        kl_ltx2_audio.LTX2AudioAttnBlock vidtok.VidTokAttnBlock
        """,
    ),
    ("proj_out",),
    form="channels",
)
_register(
    HeadHooks,
    (
        _MODELS + "transformers.consisid_transformer_3d.PerceiverAttention",
        _MODELS + "transformers.consisid_transformer_3d.PerceiverCrossAttention",
    ),
    ("to_out",),
)
_register(HeadHooks, (_MODELS + "embeddings.MochiAttentionPool",), ("to_out",), kind="pooling")
_register(HeadHooks, (_MODELS + "unets.unet_1d_blocks.SelfAttention1d",), ("proj_attn",))


@register_named(_TRANSFORMERS + "flux2.Flux2ParallelSelfAttention")
class ParallelHooks(ProcessorHooks):
    """Flux 2's single-stream blocks: `to_out` sees the merged heads, and the feed-forward part behind them."""

    candidates = ("to_out",)

    def layout(self, module: nn.Module) -> Layout:
        """The heads are what is first of the merged entries."""
        shape = self.shape(module)
        assert shape.num_heads is not None
        assert shape.head_dim is not None
        return Layout(shape.head_dim, width=shape.num_heads * shape.head_dim)


@register_named(_MODELS + "embeddings.AttentionPooling")
class PooledHeads(PostHook):
    """One query, the tokens' mean, and no projection: it returns its heads."""

    kind = "pooling"

    def shape(self, module: nn.Module) -> HeadShape:
        """From the module's attributes."""
        return HeadShape(read_int(module, "num_heads"), read_int(module, "dim_per_head"))


# Its softmax is over layers; its attention is that of the module that it reaches into, whose projection is hooked.
composites_named(
    _MODELS + "condition_embedders.condition_embedder_minimax_music3.MiniMaxMusic3ConditionEncoder",
    _MODELS + "embeddings.IPAdapterTimeImageProjectionBlock",
)
