"""diffusers: where the heads' outputs of its attention classes are, and the processors that compute attention for them.

Most classes hold the projections and leave computing to a processor, which calls one output projection per stream with
the merged heads. Single-stream blocks have no output projection: the attention returns the heads' outputs. Read in
diffusers 0.42.1.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from ...adapter import HeadShape, read_int
from ..table_hooks import HookRow

_MODELS = "diffusers.models."
_SHARED = _MODELS + "attention_processor."
_AUTOENCODERS = _MODELS + "autoencoders.autoencoder_"
_TRANSFORMERS = _MODELS + "transformers.transformer_"


def _present(names: tuple[str, ...], module: nn.Module) -> tuple[str, ...]:
    """Those of ``names`` that are paths of children."""
    paths = {path for path, _ in module.named_modules()}
    return tuple(name for name in names if name in paths)


def _heads(names: tuple[str, ...], module: nn.Module) -> HeadShape:
    """From the module's attributes, or the width of its projection; blocks without a number of heads have one."""
    heads = read_int(module, "heads", "num_heads", "num_attention_heads") or 1
    width = read_int(module, "inner_dim") or _taken(module, _present(names, module))
    return HeadShape(heads, width // heads if width else None)


def _taken(module: nn.Module, projections: tuple[str, ...]) -> int | None:
    """How many entries the first of ``projections`` takes."""
    weights = module.get_submodule(projections[0]).parameters() if projections else ()
    return next((weight.shape[1] for weight in weights if weight.dim() > 1), None)


def _row(*projections: str, **options: Any) -> HookRow:
    """A class whose output projections, as far as a module has them, are hooked."""
    return HookRow(hook_targets=partial(_present, projections), heads=partial(_heads, projections), **options)


def _width_of_all_heads(module: nn.Module) -> int:
    """Flux 2's parallel blocks merge the feed-forward part behind the heads."""
    shape = _heads(("to_out",), module)
    return (shape.num_heads or 0) * (shape.head_dim or 0)


def _attends_to_an_image(module: nn.Module) -> str | None:
    if getattr(module, "add_k_proj", None) is None:
        return None
    return "it sums two attentions, to the text and to an image, before a module is called with them"


def _has_a_gate(module: nn.Module) -> str | None:
    if module.to_gate_logits is None:
        return None
    return "a gate per head multiplies the heads' outputs before a module is called with them"


def _is_differential(module: nn.Module) -> str | None:
    if not module.use_differential:
        return None
    return "differential attention: it subtracts one attention's output from another's"


_TO_OUT = _row("to_out.0", "to_add_out")
_WAN = _row("to_out.0", "to_add_out", unsupported_if=_attends_to_an_image)
_LTX2 = _row("to_out.0", "to_add_out", unsupported_if=_has_a_gate)
_DIFFERENTIAL = _row("to_out", unsupported_if=_is_differential)
_JOY_IMAGE = _row("img_attn_proj", "txt_attn_proj")
_PROJ_2D = _row("proj", form="channels")
_PROJ_OUT_2D = _row("proj_out", form="channels")

# Classes that hold the projections and leave computing to a processor.
WITH_PROCESSOR = {
    _AUTOENCODERS + "kl_cosmos.CosmosCausalAttention": _row("to_out.0", form="channels"),
    _AUTOENCODERS + "kl_kvae_audio.KVAEAudioAttention": _TO_OUT,
    _AUTOENCODERS + "kl_minimax_h3.MiniMaxH3VideoAttention": _TO_OUT,
    _AUTOENCODERS + "mmaudio.MMAudioAttnBlock1D": _PROJ_OUT_2D,
    _AUTOENCODERS + "same.SAMEAttention": _DIFFERENTIAL,
    _MODELS + "autoencoders.ltx2_diffusion_decoder.LTX2VideoVaeNeighborhoodAttention": _TO_OUT,
    _MODELS + "condition_embedders.condition_embedder_anima.AnimaTextConditionerAttention": _row("o_proj"),
    _MODELS + "transformers.ace_step_transformer.AceStepAttention": _TO_OUT,
    _MODELS + "transformers.minimax_music3_rvq_depth_decoder.MiniMaxMusic3DepthAttention": _row("to_out"),
    _SHARED + "Attention": _TO_OUT,
    _SHARED + "MochiAttention": _TO_OUT,
    _TRANSFORMERS + "anyflow.AnyFlowAttention": _TO_OUT,
    _TRANSFORMERS + "anyflow_far.AnyFlowAttention": _TO_OUT,
    _TRANSFORMERS + "bria.BriaAttention": _TO_OUT,
    _TRANSFORMERS + "bria_fibo.BriaFiboAttention": _TO_OUT,
    _TRANSFORMERS + "bria_fibo2.BriaFibo2Attention": _TO_OUT,
    _TRANSFORMERS + "chronoedit.WanAttention": _WAN,
    _TRANSFORMERS + "cosmos3.Cosmos3PackedMoTAttention": _row("to_out", "to_add_out"),
    _TRANSFORMERS + "ernie_image.ErnieImageAttention": _TO_OUT,
    _TRANSFORMERS + "flux.FluxAttention": _TO_OUT,
    _TRANSFORMERS + "flux2.Flux2Attention": _TO_OUT,
    _TRANSFORMERS + "flux2.Flux2ParallelSelfAttention": _row("to_out", width=_width_of_all_heads),
    _TRANSFORMERS + "flux3.Flux3Attention": _TO_OUT,
    _TRANSFORMERS + "helios.HeliosAttention": _TO_OUT,
    _TRANSFORMERS + "hidream_image.HiDreamAttention": _row("to_out", "to_out_t"),
    _TRANSFORMERS + "ideogram4.Ideogram4Attention": _TO_OUT,
    _TRANSFORMERS + "joyimage.JoyImageAttention": _JOY_IMAGE,
    _TRANSFORMERS + "joyimage_edit_plus.JoyImageEditPlusAttention": _JOY_IMAGE,
    _TRANSFORMERS + "kandinsky.Kandinsky5Attention": _row("out_layer"),
    _TRANSFORMERS + "kandinsky6.Kandinsky6Attention": _row("out_layer"),
    _TRANSFORMERS + "kandinsky6_sr.Kandinsky6SRAttention": _row("out_layer"),
    _TRANSFORMERS + "longcat_audio_dit.AudioDiTAttention": _TO_OUT,
    _TRANSFORMERS + "longcat_image.LongCatImageAttention": _TO_OUT,
    _TRANSFORMERS + "ltx.LTXAttention": _TO_OUT,
    _TRANSFORMERS + "ltx2.LTX2Attention": _LTX2,
    _TRANSFORMERS + "minimax_h3.MiniMaxH3Attention": _TO_OUT,
    _TRANSFORMERS + "minimax_music3.MiniMaxMusic3Attention": _TO_OUT,
    _TRANSFORMERS + "motif_video.MotifVideoAttention": _TO_OUT,
    _TRANSFORMERS + "motif_video.MotifVideoCrossAttention": _TO_OUT,
    _TRANSFORMERS + "ovis_image.OvisImageAttention": _TO_OUT,
    _TRANSFORMERS + "prx.PRXAttention": _TO_OUT,
    _TRANSFORMERS + "qwenimage21.QwenImage21Attention": _TO_OUT,
    _TRANSFORMERS + "sana_wm.MultiHeadCrossAttention": _row("proj"),
    _TRANSFORMERS + "sana_wm_refiner.SanaWMLTX2Attention": _LTX2,
    _TRANSFORMERS + "skyreels_v2.SkyReelsV2Attention": _WAN,
    _TRANSFORMERS + "stable_audio3.StableAudio3CrossAttention": _DIFFERENTIAL,
    _TRANSFORMERS + "stable_audio3.StableAudio3SelfAttention": _DIFFERENTIAL,
    _TRANSFORMERS + "wan.WanAttention": _WAN,
    _TRANSFORMERS + "wan_animate.WanAnimateFaceBlockCrossAttention": _row("to_out"),
    _TRANSFORMERS + "wan_animate.WanAttention": _WAN,
    _TRANSFORMERS + "wan_animate_2.WanAnimate2Attention": _WAN,
}

# Classes that compute attention themselves.
WITHOUT_PROCESSOR = {
    _AUTOENCODERS + "kl_hunyuanimage.HunyuanImageAttentionBlock": _PROJ_2D,
    _AUTOENCODERS + "kl_hunyuanimage_refiner.HunyuanImageRefinerAttnBlock": _PROJ_OUT_2D,
    _AUTOENCODERS + "kl_hunyuanvideo15.HunyuanVideo15AttnBlock": _PROJ_OUT_2D,
    _AUTOENCODERS + "kl_ltx2_audio.LTX2AudioAttnBlock": _PROJ_OUT_2D,
    _AUTOENCODERS + "kl_qwenimage.QwenImageAttentionBlock": _PROJ_2D,
    _AUTOENCODERS + "kl_qwenimage21.QwenImage21AttentionBlock": _PROJ_2D,
    _AUTOENCODERS + "kl_wan.WanAttentionBlock": _PROJ_2D,
    _AUTOENCODERS + "vidtok.VidTokAttnBlock": _PROJ_OUT_2D,
    _MODELS + "embeddings.AttentionPooling": HookRow(num_heads="num_heads", head_dim="dim_per_head", kind="pooling"),
    _MODELS + "embeddings.MochiAttentionPool": _row("to_out", kind="pooling"),
    _MODELS + "transformers.consisid_transformer_3d.PerceiverAttention": _row("to_out"),
    _MODELS + "transformers.consisid_transformer_3d.PerceiverCrossAttention": _row("to_out"),
    _MODELS + "unets.unet_1d_blocks.SelfAttention1d": _row("proj_attn"),
}

COMPOSITES = (
    # Its softmax is over layers.
    _MODELS + "condition_embedders.condition_embedder_minimax_music3.MiniMaxMusic3ConditionEncoder",
    # Its attention is that of the module that it reaches into, whose projection is hooked.
    _MODELS + "embeddings.IPAdapterTimeImageProjectionBlock",
)

# Processors that call the output projections with the merged heads and nothing else, or return these.
KNOWN_PROCESSORS = frozenset(
    {
        _AUTOENCODERS + "kl_cosmos.CosmosSpatialAttentionProcessor2_0",
        _AUTOENCODERS + "kl_cosmos.CosmosTemporalAttentionProcessor2_0",
        _AUTOENCODERS + "kl_kvae_audio.KVAEAudioAttnProcessor",
        _AUTOENCODERS + "kl_minimax_h3.MiniMaxH3VideoAttnProcessor",
        _AUTOENCODERS + "mmaudio.MMAudioAttnProcessor",
        _AUTOENCODERS + "same.SAMEAttnProcessor",
        _MODELS + "autoencoders.ltx2_diffusion_decoder.LTX2VideoVaeNeighborhoodAttnProcessor",
        _MODELS + "autoencoders.ltx2_diffusion_decoder.LTX2VideoVaeNeighborhoodNattenProcessor",
        _MODELS + "condition_embedders.condition_embedder_anima.AnimaTextConditionerAttnProcessor",
        _MODELS + "controlnets.controlnet_z_image.ZSingleStreamAttnProcessor",
        _MODELS + "transformers.ace_step_transformer.AceStepAttnProcessor2_0",
        _MODELS + "transformers.minimax_music3_rvq_depth_decoder.MiniMaxMusic3DepthAttnProcessor",
        _MODELS + "transformers.sana_transformer.SanaAttnProcessor2_0",
        _MODELS + "unets.unet_dreamlite.DreamLiteAttnProcessor2_0",
        _SHARED + "AllegroAttnProcessor2_0",
        _SHARED + "AttnAddedKVProcessor",
        _SHARED + "AttnAddedKVProcessor2_0",
        _SHARED + "AttnProcessor",
        _SHARED + "AttnProcessor2_0",
        _SHARED + "AttnProcessorNPU",
        _SHARED + "AuraFlowAttnProcessor2_0",
        _SHARED + "CogVideoXAttnProcessor2_0",
        _SHARED + "FusedAttnProcessor2_0",
        _SHARED + "FusedAuraFlowAttnProcessor2_0",
        _SHARED + "FusedCogVideoXAttnProcessor2_0",
        _SHARED + "FusedHunyuanAttnProcessor2_0",
        _SHARED + "FusedJointAttnProcessor2_0",
        _SHARED + "HunyuanAttnProcessor2_0",
        _SHARED + "JointAttnProcessor2_0",
        _SHARED + "MochiAttnProcessor2_0",
        _SHARED + "MochiVaeAttnProcessor2_0",
        _SHARED + "SlicedAttnAddedKVProcessor",
        _SHARED + "SlicedAttnProcessor",
        _SHARED + "StableAudioAttnProcessor2_0",
        _SHARED + "XFormersAttnAddedKVProcessor",
        _SHARED + "XFormersAttnProcessor",
        _SHARED + "XFormersJointAttnProcessor",
        _SHARED + "XLAFlashAttnProcessor2_0",
        _TRANSFORMERS + "anyflow.AnyFlowAttnProcessor",
        _TRANSFORMERS + "anyflow.AnyFlowCrossAttnProcessor",
        _TRANSFORMERS + "anyflow_far.AnyFlowAttnProcessor",
        _TRANSFORMERS + "anyflow_far.AnyFlowCausalAttnProcessor",
        _TRANSFORMERS + "anyflow_far.AnyFlowCrossAttnProcessor",
        _TRANSFORMERS + "bria.BriaAttnProcessor",
        _TRANSFORMERS + "bria_fibo.BriaFiboAttnProcessor",
        _TRANSFORMERS + "bria_fibo2.BriaFibo2AttnProcessor",
        _TRANSFORMERS + "chronoedit.WanAttnProcessor",
        _TRANSFORMERS + "cogview4.CogView4AttnProcessor",
        _TRANSFORMERS + "cogview4.CogView4TrainingAttnProcessor",
        _TRANSFORMERS + "cosmos.CosmosAttnProcessor2_0",
        _TRANSFORMERS + "cosmos3.Cosmos3AttnProcessor",
        _TRANSFORMERS + "easyanimate.EasyAnimateAttnProcessor2_0",
        _TRANSFORMERS + "ernie_image.ErnieImageSingleStreamAttnProcessor",
        _TRANSFORMERS + "flux.FluxAttnProcessor",
        _TRANSFORMERS + "flux2.Flux2AttnProcessor",
        _TRANSFORMERS + "flux2.Flux2KVAttnProcessor",
        _TRANSFORMERS + "flux2.Flux2KVParallelSelfAttnProcessor",
        _TRANSFORMERS + "flux2.Flux2ParallelSelfAttnProcessor",
        _TRANSFORMERS + "flux3.Flux3AttnProcessor",
        _TRANSFORMERS + "glm_image.GlmImageAttnProcessor",
        _TRANSFORMERS + "helios.HeliosAttnProcessor",
        _TRANSFORMERS + "hidream_image.HiDreamAttnProcessor",
        _TRANSFORMERS + "hunyuan_video.HunyuanVideoAttnProcessor2_0",
        _TRANSFORMERS + "hunyuan_video15.HunyuanVideo15AttnProcessor2_0",
        _TRANSFORMERS + "hunyuanimage.HunyuanImageAttnProcessor",
        _TRANSFORMERS + "ideogram4.Ideogram4AttnProcessor",
        _TRANSFORMERS + "joyimage.JoyImageAttnProcessor",
        _TRANSFORMERS + "joyimage_edit_plus.JoyImageEditPlusAttnProcessor",
        _TRANSFORMERS + "kandinsky.Kandinsky5AttnProcessor",
        _TRANSFORMERS + "kandinsky6.Kandinsky6AttnProcessor",
        _TRANSFORMERS + "kandinsky6_sr.Kandinsky6SRAttnProcessor",
        _TRANSFORMERS + "longcat_audio_dit.AudioDiTCrossAttnProcessor",
        _TRANSFORMERS + "longcat_audio_dit.AudioDiTSelfAttnProcessor",
        _TRANSFORMERS + "longcat_image.LongCatImageAttnProcessor",
        _TRANSFORMERS + "ltx.LTXVideoAttnProcessor",
        _TRANSFORMERS + "ltx2.LTX2AudioVideoAttnProcessor",
        _TRANSFORMERS + "lumina2.Lumina2AttnProcessor2_0",
        _TRANSFORMERS + "minimax_h3.MiniMaxH3AttnProcessor",
        _TRANSFORMERS + "minimax_music3.MiniMaxMusic3AttnProcessor",
        _TRANSFORMERS + "motif_video.MotifVideoAttnProcessor2_0",
        _TRANSFORMERS + "motif_video.MotifVideoCrossAttnProcessor2_0",
        _TRANSFORMERS + "nucleusmoe_image.NucleusMoEAttnProcessor2_0",
        _TRANSFORMERS + "omnigen.OmniGenAttnProcessor2_0",
        _TRANSFORMERS + "ovis_image.OvisImageAttnProcessor",
        _TRANSFORMERS + "prx.PRXAttnProcessor2_0",
        _TRANSFORMERS + "qwenimage.QwenDoubleStreamAttnProcessor2_0",
        _TRANSFORMERS + "qwenimage21.QwenImage21AttnProcessor",
        _TRANSFORMERS + "qwenimage21.QwenImage21FlexAttnProcessor",
        _TRANSFORMERS + "sana_video.SanaAttnProcessor2_0",
        _TRANSFORMERS + "sana_wm.SanaWMCrossAttnProcessor",
        _TRANSFORMERS + "sana_wm_refiner.SanaWMLTX2AudioVideoAttnProcessor",
        _TRANSFORMERS + "sana_wm_refiner.SanaWMLTX2RefinerAttnProcessor",
        _TRANSFORMERS + "skyreels_v2.SkyReelsV2AttnProcessor",
        _TRANSFORMERS + "stable_audio3.StableAudio3CrossAttnProcessor",
        _TRANSFORMERS + "stable_audio3.StableAudio3SelfAttnProcessor",
        _TRANSFORMERS + "wan.WanAttnProcessor",
        _TRANSFORMERS + "wan_animate.WanAnimateFaceBlockAttnProcessor",
        _TRANSFORMERS + "wan_animate.WanAttnProcessor",
        _TRANSFORMERS + "wan_animate_2.WanAnimate2CrossAttnProcessor",
        _TRANSFORMERS + "z_image.ZSingleStreamAttnProcessor",
    }
)
