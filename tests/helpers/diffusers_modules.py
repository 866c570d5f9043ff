"""Attention modules of diffusers, 16 wide with two heads of 8 unless said otherwise, and what they are called with."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

T, A = "transformers.transformer_", "autoencoders.autoencoder_"


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def found(name: str) -> Any:
    """The class `package.module.Class` below `diffusers.models`."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(f"diffusers.models.{module}"), attribute)


def angles(*shape: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of random angles."""
    x = normal(*shape)
    return x.cos(), x.sin()


Call = dict[str, Any]
Case = tuple[str, tuple[Any, ...], dict[str, Any], Callable[[], Call]]  # class, arguments, options, call


def one() -> Call:
    return {"hidden_states": normal(2, 5, 16)}


def two() -> Call:
    return {"hidden_states": normal(2, 5, 16), "encoder_hidden_states": normal(2, 4, 16)}


def image() -> Call:
    return {"x": normal(2, 32, 3, 4)}


def clip() -> Call:
    return {"x": normal(2, 32, 2, 3, 4)}


HEADS = {"heads": 2, "dim_head": 8}
CASES: dict[str, Case] = {
    "AnyFlow": (T + "anyflow.AnyFlowAttention", (16, 2, 8), {}, one),
    "AnyFlow, cross": (
        T + "anyflow.AnyFlowAttention",
        (16, 2, 8),
        {"processor": T + "anyflow.AnyFlowCrossAttnProcessor"},
        two,
    ),
    "AnyFlow FAR": (
        T + "anyflow_far.AnyFlowAttention",
        (16, 2, 8),
        {"processor": T + "anyflow_far.AnyFlowAttnProcessor"},
        one,
    ),
    "AnyFlow FAR, cross": (
        T + "anyflow_far.AnyFlowAttention",
        (16, 2, 8),
        {"processor": T + "anyflow_far.AnyFlowCrossAttnProcessor"},
        two,
    ),
    "Bria Fibo 2": (T + "bria_fibo2.BriaFibo2Attention", (16, 2, 8), {}, one),
    "Ernie": (T + "ernie_image.ErnieImageAttention", (16,), HEADS, one),
    "Flux 3": (T + "flux3.Flux3Attention", (16,), HEADS, one),
    "Helios": (T + "helios.HeliosAttention", (16,), {**HEADS, "processor": T + "helios.HeliosAttnProcessor"}, one),
    "Ideogram 4": (
        T + "ideogram4.Ideogram4Attention",
        (16, 2),
        {},
        lambda: {**one(), "attention_mask": None, "image_rotary_emb": angles(2, 5, 8)},
    ),
    "LongCat audio": (
        T + "longcat_audio_dit.AudioDiTAttention",
        (16, None, 2, 8),
        {},
        lambda: {**one(), "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=torch.bool)},
    ),
    "LongCat audio, cross": (
        T + "longcat_audio_dit.AudioDiTAttention",
        (16, 16, 2, 8),
        {"processor": T + "longcat_audio_dit.AudioDiTCrossAttnProcessor"},
        two,
    ),
    "LTX 2": (T + "ltx2.LTX2Attention", (16,), {**HEADS, "kv_heads": 2}, one),
    "LTX 2, cross": (T + "ltx2.LTX2Attention", (16,), {**HEADS, "kv_heads": 2, "cross_attention_dim": 16}, two),
    "LTX 2 of Sana": (T + "sana_wm_refiner.SanaWMLTX2Attention", (16,), {**HEADS, "kv_heads": 2}, one),
    "LTX 2 of Sana, refiner": (
        T + "sana_wm_refiner.SanaWMLTX2Attention",
        (16,),
        {**HEADS, "kv_heads": 2, "processor": T + "sana_wm_refiner.SanaWMLTX2RefinerAttnProcessor"},
        lambda: {**one(), "query_rotary_emb": angles(2, 5, 16)},
    ),
    "MiniMax H3": (T + "minimax_h3.MiniMaxH3Attention", (16, 2, 8), {}, one),
    "MiniMax Music 3": (
        T + "minimax_music3.MiniMaxMusic3Attention",
        (16, 2, 8),
        {},
        lambda: {**one(), "rotary_emb": angles(5, 8)},
    ),
    "MiniMax Music 3, depth": (
        "transformers.minimax_music3_rvq_depth_decoder.MiniMaxMusic3DepthAttention",
        (16, 2),
        {},
        one,
    ),
    "Motif": (T + "motif_video.MotifVideoAttention", (16,), HEADS, one),
    "Motif, joint": (T + "motif_video.MotifVideoAttention", (16,), {**HEADS, "added_kv_proj_dim": 16}, two),
    "Motif, single stream": (T + "motif_video.MotifVideoAttention", (16,), {**HEADS, "pre_only": True}, two),
    "Motif, cross": (T + "motif_video.MotifVideoCrossAttention", (16,), HEADS, two),
    "PRX": (T + "prx.PRXAttention", (16,), HEADS, two),
    "Qwen Image 2.1": (T + "qwenimage21.QwenImage21Attention", (16, 2, 8), {}, one),
    "KVAE audio": (A + "kl_kvae_audio.KVAEAudioAttention", (16, 2), {}, one),
    "MiniMax H3 VAE": (A + "kl_minimax_h3.MiniMaxH3VideoAttention", (16, 2, 8), {}, one),
    "ACE-Step": ("transformers.ace_step_transformer.AceStepAttention", (16, 2, 1, 8), {}, one),
    "ACE-Step, cross": (
        "transformers.ace_step_transformer.AceStepAttention",
        (16, 2, 1, 8),
        {"is_cross_attention": True},
        two,
    ),
    "Cosmos 3": (
        T + "cosmos3.Cosmos3PackedMoTAttention",
        (16, 8, 2, 1, False, 1e-6),
        {},
        lambda: {
            "und_seq": normal(5, 16),
            "gen_seq": normal(4, 16),
            "rotary_emb": (*angles(5, 8), *angles(4, 8)),
        },
    ),
    "Wan Animate, face": (
        T + "wan_animate.WanAnimateFaceBlockCrossAttention",
        (16,),
        {**HEADS, "cross_attention_dim_head": 8},
        lambda: {"hidden_states": normal(2, 6, 16), "encoder_hidden_states": normal(2, 3, 4, 16)},
    ),
    "Wan Animate 2, cross": (
        T + "wan_animate_2.WanAnimate2Attention",
        (16, 2),
        {"processor": T + "wan_animate_2.WanAnimate2CrossAttnProcessor", "is_cross_attention": True},
        two,
    ),
    "Anima": (
        "condition_embedders.condition_embedder_anima.AnimaTextConditionerAttention",
        (16, 16, 2, 8),
        {},
        two,
    ),
    "Kandinsky 5": (T + "kandinsky.Kandinsky5Attention", (16, 8), {}, one),
    "Kandinsky 5, cross": (T + "kandinsky.Kandinsky5Attention", (16, 8), {}, two),
    "Kandinsky 6": (T + "kandinsky6.Kandinsky6Attention", (16, 8), {}, one),
    "Sana WM, cross": (
        T + "sana_wm.MultiHeadCrossAttention",
        (16, 2),
        {},
        lambda: {"x": normal(2, 5, 16), "cond": normal(2, 4, 16)},
    ),
    "Joy Image": (T + "joyimage.JoyImageAttention", (16, 2, 8), {}, two),
    "Joy Image Edit": (T + "joyimage_edit_plus.JoyImageEditPlusAttention", (16, 2, 8), {}, two),
    "SAME": (A + "same.SAMEAttention", (16,), {"dim_heads": 8, "use_differential": False}, one),
    "Stable Audio 3": (
        T + "stable_audio3.StableAudio3SelfAttention",
        (16,),
        {"dim_heads": 8, "use_differential": False},
        lambda: {**one(), "rope": normal(5, 4)},
    ),
    "Stable Audio 3, cross": (
        T + "stable_audio3.StableAudio3CrossAttention",
        (16, 16),
        {"dim_heads": 8, "use_differential": False},
        lambda: {**one(), "context": normal(2, 4, 16)},
    ),
    "Cosmos VAE, space": (
        A + "kl_cosmos.CosmosCausalAttention",
        (2, 16),
        {"processor": A + "kl_cosmos.CosmosSpatialAttentionProcessor2_0"},
        lambda: {"hidden_states": normal(2, 16, 2, 3, 4)},
    ),
    "Cosmos VAE, time": (
        A + "kl_cosmos.CosmosCausalAttention",
        (2, 16),
        {"processor": A + "kl_cosmos.CosmosTemporalAttentionProcessor2_0"},
        lambda: {"hidden_states": normal(2, 16, 2, 3, 4)},
    ),
    "MMAudio": (A + "mmaudio.MMAudioAttnBlock1D", (32,), {"num_heads": 2}, lambda: {"x": normal(2, 32, 5)}),
    "Hunyuan Image VAE": (A + "kl_hunyuanimage.HunyuanImageAttentionBlock", (32,), {}, image),
    "Qwen Image VAE": (A + "kl_qwenimage.QwenImageAttentionBlock", (32,), {}, clip),
    "Qwen Image 2.1 VAE": (A + "kl_qwenimage21.QwenImage21AttentionBlock", (32,), {}, clip),
    "Wan VAE": (A + "kl_wan.WanAttentionBlock", (32,), {}, clip),
    "Hunyuan Image refiner VAE": (A + "kl_hunyuanimage_refiner.HunyuanImageRefinerAttnBlock", (32,), {}, clip),
    "Hunyuan Video 1.5 VAE": (
        A + "kl_hunyuanvideo15.HunyuanVideo15AttnBlock",
        (32,),
        {},
        lambda: {"x": normal(1, 32, 2, 3, 4)},
    ),
    "LTX 2 audio VAE": (A + "kl_ltx2_audio.LTX2AudioAttnBlock", (32,), {}, image),
    "VidTok": (A + "vidtok.VidTokAttnBlock", (32,), {}, clip),
    "ConsisID, latents": (
        "transformers.consisid_transformer_3d.PerceiverAttention",
        (16, 8, 2),
        {},
        lambda: {"image_embeds": normal(2, 5, 16), "latents": normal(2, 4, 16)},
    ),
    "ConsisID, cross": (
        "transformers.consisid_transformer_3d.PerceiverCrossAttention",
        (16, 8, 2, 16),
        {},
        lambda: {"image_embeds": normal(2, 5, 16), "hidden_states": normal(2, 4, 16)},
    ),
    "Mochi, pooling": (
        "embeddings.MochiAttentionPool",
        (2, 16),
        {},
        lambda: {"x": normal(2, 5, 16), "mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=torch.bool)},
    ),
    "1-D U-Net": ("unets.unet_1d_blocks.SelfAttention1d", (16, 2), {}, lambda: {"hidden_states": normal(2, 16, 5)}),
    "IF, pooling": ("embeddings.AttentionPooling", (2, 16), {}, lambda: {"x": normal(2, 5, 16)}),
    "Mochi": (
        "attention_processor.MochiAttention",
        (16, 16, "attention_processor.MochiAttnProcessor2_0"),
        HEADS,
        lambda: {**two(), "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]], dtype=torch.bool)},
    ),
    "Mochi VAE": (
        "attention_processor.Attention",
        (16,),
        {**HEADS, "processor": "attention_processor.MochiVaeAttnProcessor2_0"},
        one,
    ),
    "DreamLite": (
        "attention_processor.Attention",
        (16,),
        {**HEADS, "processor": "unets.unet_dreamlite.DreamLiteAttnProcessor2_0"},
        one,
    ),
    "Hunyuan Video, single stream": (
        "attention_processor.Attention",
        (16,),
        {
            **HEADS,
            "qk_norm": "rms_norm",
            "pre_only": True,
            "processor": T + "hunyuan_video.HunyuanVideoAttnProcessor2_0",
        },
        two,
    ),
    "OmniGen": (
        "attention_processor.Attention",
        (16,),
        {**HEADS, "out_bias": False, "processor": T + "omnigen.OmniGenAttnProcessor2_0"},
        lambda: {"hidden_states": (x := normal(2, 5, 16)), "encoder_hidden_states": x},
    ),
    "Z-Image ControlNet": (
        "attention_processor.Attention",
        (16,),
        {**HEADS, "qk_norm": "rms_norm", "processor": "controlnets.controlnet_z_image.ZSingleStreamAttnProcessor"},
        one,
    ),
    "Sana Video, cross": (
        "attention_processor.Attention",
        (16, 16),
        {**HEADS, "processor": T + "sana_video.SanaAttnProcessor2_0"},
        two,
    ),
    "HiDream": (
        T + "hidream_image.HiDreamAttention",
        (16,),
        {**HEADS, "processor": T + "hidream_image.HiDreamAttnProcessor"},
        lambda: {
            "norm_hidden_states": normal(2, 5, 16),
            "norm_encoder_hidden_states": normal(2, 4, 16),
            "image_rotary_emb": torch.randn(2, 9, 1, 4, 2, 2).double(),
        },
    ),
    "HiDream, single stream": (
        T + "hidream_image.HiDreamAttention",
        (16,),
        {**HEADS, "single": True, "processor": T + "hidream_image.HiDreamAttnProcessor"},
        lambda: {
            "norm_hidden_states": normal(2, 5, 16),
            "image_rotary_emb": torch.randn(2, 5, 1, 4, 2, 2).double(),
        },
    ),
}


SINGLE = {"MMAudio"}  # computes norms in float32, and refuses to do that for float64
TRANSPOSED = {"IF, pooling"}  # its product of weights and values has the rows as columns


def build(name: str) -> tuple[nn.Module, Call]:
    """The module in float64, in float32 if it cannot, and what it is called with."""
    cls, arguments, options, call = CASES[name]
    made = [found(value)() if isinstance(value, str) and "Processor" in value else value for value in arguments]
    if "processor" in options:
        options = {**options, "processor": found(options["processor"])()}
    torch.manual_seed(0)
    module = found(cls)(*made, **options)
    if name in SINGLE:
        return module, {key: value.float() for key, value in call().items()}
    return module.double(), call()
