"""diffusers' processors, which compute what its attention modules hold the projections for: which can be served.

Read in diffusers 0.42.1. A processor is served if it hands the heads' outputs, merged head by head, and nothing else to
the output projections, or returns them where there are none.
"""

from __future__ import annotations

import functools
from types import FunctionType
from typing import Any

import torch

from ...known_texts import is_read, versions_read
from ...registry import class_name
from .unsupported import UNSUPPORTED_PROCESSORS

_MODELS = "diffusers.models."
_SHARED = _MODELS + "attention_processor."
_TRANSFORMERS = _MODELS + "transformers."


def named(package: str, names: str) -> tuple[str, ...]:
    """The qualified names of classes that share a package."""
    return tuple(package + name for name in names.split())


KNOWN_PROCESSORS = frozenset().union(
    named(
        _SHARED,
        """
        AttnAddedKVProcessor AttnAddedKVProcessor2_0 AttnProcessor AttnProcessor2_0 AttnProcessorNPU
        AllegroAttnProcessor2_0 AuraFlowAttnProcessor2_0 CogVideoXAttnProcessor2_0 FusedAttnProcessor2_0
        FusedAuraFlowAttnProcessor2_0 FusedCogVideoXAttnProcessor2_0 FusedHunyuanAttnProcessor2_0
        FusedJointAttnProcessor2_0 HunyuanAttnProcessor2_0 JointAttnProcessor2_0 MochiAttnProcessor2_0
        MochiVaeAttnProcessor2_0 SlicedAttnAddedKVProcessor SlicedAttnProcessor StableAudioAttnProcessor2_0
        XFormersAttnAddedKVProcessor XFormersAttnProcessor XFormersJointAttnProcessor XLAFlashAttnProcessor2_0
        """,
    ),
    named(
        _MODELS,
        """
        autoencoders.autoencoder_kl_cosmos.CosmosSpatialAttentionProcessor2_0
        autoencoders.autoencoder_kl_cosmos.CosmosTemporalAttentionProcessor2_0
        autoencoders.autoencoder_kl_kvae_audio.KVAEAudioAttnProcessor
        autoencoders.autoencoder_kl_minimax_h3.MiniMaxH3VideoAttnProcessor
        autoencoders.autoencoder_mmaudio.MMAudioAttnProcessor
        autoencoders.autoencoder_same.SAMEAttnProcessor
        autoencoders.ltx2_diffusion_decoder.LTX2VideoVaeNeighborhoodAttnProcessor
        autoencoders.ltx2_diffusion_decoder.LTX2VideoVaeNeighborhoodNattenProcessor
        condition_embedders.condition_embedder_anima.AnimaTextConditionerAttnProcessor
        controlnets.controlnet_z_image.ZSingleStreamAttnProcessor
        unets.unet_dreamlite.DreamLiteAttnProcessor2_0
        """,
    ),
    named(
        _TRANSFORMERS,
        """
        ace_step_transformer.AceStepAttnProcessor2_0 minimax_music3_rvq_depth_decoder.MiniMaxMusic3DepthAttnProcessor
        sana_transformer.SanaAttnProcessor2_0
        """,
    ),
    named(
        _TRANSFORMERS + "transformer_",
        """
        anyflow.AnyFlowAttnProcessor anyflow.AnyFlowCrossAttnProcessor anyflow_far.AnyFlowAttnProcessor
        anyflow_far.AnyFlowCausalAttnProcessor anyflow_far.AnyFlowCrossAttnProcessor bria.BriaAttnProcessor
        bria_fibo.BriaFiboAttnProcessor bria_fibo2.BriaFibo2AttnProcessor chronoedit.WanAttnProcessor
        cogview4.CogView4AttnProcessor cogview4.CogView4TrainingAttnProcessor cosmos.CosmosAttnProcessor2_0
        cosmos3.Cosmos3AttnProcessor easyanimate.EasyAnimateAttnProcessor2_0
        ernie_image.ErnieImageSingleStreamAttnProcessor flux.FluxAttnProcessor flux2.Flux2AttnProcessor
        flux2.Flux2KVAttnProcessor flux2.Flux2KVParallelSelfAttnProcessor flux2.Flux2ParallelSelfAttnProcessor
        flux3.Flux3AttnProcessor glm_image.GlmImageAttnProcessor helios.HeliosAttnProcessor
        hidream_image.HiDreamAttnProcessor hunyuan_video.HunyuanVideoAttnProcessor2_0
        hunyuan_video15.HunyuanVideo15AttnProcessor2_0 hunyuanimage.HunyuanImageAttnProcessor
        ideogram4.Ideogram4AttnProcessor joyimage.JoyImageAttnProcessor
        joyimage_edit_plus.JoyImageEditPlusAttnProcessor kandinsky.Kandinsky5AttnProcessor
        kandinsky6.Kandinsky6AttnProcessor kandinsky6_sr.Kandinsky6SRAttnProcessor
        longcat_audio_dit.AudioDiTCrossAttnProcessor longcat_audio_dit.AudioDiTSelfAttnProcessor
        longcat_image.LongCatImageAttnProcessor ltx.LTXVideoAttnProcessor ltx2.LTX2AudioVideoAttnProcessor
        lumina2.Lumina2AttnProcessor2_0 minimax_h3.MiniMaxH3AttnProcessor minimax_music3.MiniMaxMusic3AttnProcessor
        motif_video.MotifVideoAttnProcessor2_0 motif_video.MotifVideoCrossAttnProcessor2_0
        nucleusmoe_image.NucleusMoEAttnProcessor2_0 omnigen.OmniGenAttnProcessor2_0 ovis_image.OvisImageAttnProcessor
        prx.PRXAttnProcessor2_0 qwenimage.QwenDoubleStreamAttnProcessor2_0 qwenimage21.QwenImage21AttnProcessor
        qwenimage21.QwenImage21FlexAttnProcessor sana_video.SanaAttnProcessor2_0 sana_wm.SanaWMCrossAttnProcessor
        sana_wm_refiner.SanaWMLTX2AudioVideoAttnProcessor sana_wm_refiner.SanaWMLTX2RefinerAttnProcessor
        skyreels_v2.SkyReelsV2AttnProcessor stable_audio3.StableAudio3CrossAttnProcessor
        stable_audio3.StableAudio3SelfAttnProcessor wan.WanAttnProcessor wan_animate.WanAnimateFaceBlockAttnProcessor
        wan_animate.WanAttnProcessor wan_animate_2.WanAnimate2CrossAttnProcessor z_image.ZSingleStreamAttnProcessor
        """,
    ),
)


def processor_refusal(processor: object) -> str | None:
    """Why modules with this processor cannot be served, or None."""
    cls: Any = type(processor)  # mypy takes no class for hashable
    name = class_name(cls)
    if name in KNOWN_PROCESSORS:
        if torch.compiler.is_compiling() or _is_read(cls, cls.__call__):
            return None  # what compiles looked at the text before
        return f"its processor {name}: its code is not that which was read in {versions_read('diffusers')}"
    if name in UNSUPPORTED_PROCESSORS:
        return f"its processor {name}: {UNSUPPORTED_PROCESSORS[name]}"
    return (
        f"its processor {name} is not one that is known to hand one attention's heads, and nothing else, to the "
        "output projections"
    )


@functools.lru_cache(maxsize=1024)
def _is_read(cls: Any, call: Any) -> bool:
    """Whether the processor's code was read; asked at every call, so kept for as long as its ``call`` is the same."""
    return is_read(cls, cls, "__call__")


def is_processor(cls: type) -> bool:
    """Whether ``cls`` computes attention for the module that it is called with."""
    call = vars(cls).get("__call__")
    return isinstance(call, FunctionType) and call.__code__.co_varnames[:2] == ("self", "attn")
