"""Attention modules of transformers whose whole models are large or need other packages, 32 wide, with inputs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from tests.helpers.explicit import diagonal_product

# Read as a configuration by all of them; what a class reads beyond this is given where it is built.
COMMON = {
    **dict.fromkeys(["hidden_size", "d_model", "embed_dim", "n_embd", "all_head_size"], 32),
    **dict.fromkeys(["num_attention_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads"], 4),
    **dict.fromkeys(["attention_dropout", "dropout", "hidden_dropout_prob", "attention_probs_dropout_prob"], 0.0),
    **dict.fromkeys(["bias", "qkv_bias", "use_attention_bias"], True),
    "max_position_embeddings": 32,
    "layer_norm_eps": 1e-6,
    "_attn_implementation": "eager",
}


def config(**changes: Any) -> SimpleNamespace:
    """The common configuration with changes."""
    return SimpleNamespace(**{**COMMON, **changes})


def rows(*shape: int) -> Tensor:
    """Random numbers, the same for a shape every time."""
    return torch.randn(*shape, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape)))


def attention_class(name: str) -> type[nn.Module]:
    """The class ``model.Class`` or ``folder.file.Class``."""
    folder, *files, cls = name.split(".")
    file = files[0] if files else folder
    file = file if file in ("perceiver",) else f"modeling_{file}"
    found: type[nn.Module] = getattr(importlib.import_module(f"transformers.models.{folder}.{file}"), cls)
    return found


Built = tuple[tuple[Any, ...], dict[str, Any], tuple[Any, ...]]  # arguments of the constructor, and of the call

_QUERY, _KEY = rows(2, 5), rows(2, 9)
_BIAS = torch.randn(2, 1, 5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
_SQUARE = torch.randn(2, 1, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
_KEEP = torch.ones(2, 9)
_KEEP[1, 6:] = 0
_CHUNKS = config(
    attention_logit_cap=50.0,
    attention_chunk_size=4,
    attention_context_left=3,
    attention_context_right=0,
    attention_invalid_logits_value=-1e9,
    use_clipped_linears=False,
)
_CONFORMER = config(hidden_dim=32, dim_head=8, context_size=4, max_pos_emb=4)
# What makes the classes that index the table of attention functions do so.
_FLASH = config(_attn_implementation="flash_attention_2", attention_downsample_rate=2)

MODULES: dict[str, Callable[[], Built]] = {
    "bark.BarkSelfAttention": lambda: ((config(block_size=16), True), {}, (_KEY,)),
    "clap.ClapAudioSelfAttention": lambda: ((config(), 32, 4, 3), {}, (_KEY,)),
    "clvp.ClvpSelfAttention": lambda: ((config(),), {}, (_KEY, None, _SQUARE)),
    "dab_detr.DetrAttention": lambda: ((config(),), {}, (_KEY, _SQUARE, _KEY)),
    "dab_detr.DabDetrAttention": lambda: ((config(),), {}, (_QUERY, _BIAS, _KEY, _KEY)),
    "evolla.EvollaSequenceCompressorAttention": lambda: (
        (32, 8, 4),
        {},
        (_KEY, _QUERY, torch.cat([_KEEP, torch.ones(2, 5)], dim=1)),
    ),
    "evolla.EvollaSequenceAlignerCrossAttention": lambda: (
        (config(aligner_attention_probs_dropout_prob=0.0, aligner_enable_bias=True, aligner_ffn_mult=2), 32, 32),
        {},
        (_QUERY, _KEY, _KEY, None, torch.ones(2, 5), _KEEP, _KEEP),
    ),
    "fastspeech2_conformer.FastSpeech2ConformerAttention": lambda: (
        (config(), {"num_attention_heads": 4, "attention_dropout_rate": 0.0}),
        {},
        (_KEY, torch.ones(2, 1, 9), rows(1, 17)),
    ),
    "gemma4.Gemma4AudioAttention": lambda: (
        (_CHUNKS, 0),
        {},
        (_KEY, rows(1, 6), torch.arange(6).expand(2, 1, 3, 4, 6) == 5),
    ),
    **{
        name: lambda: ((_CONFORMER,), {}, (_KEY, torch.randint(0, 9, (4, 4))))
        for name in (
            "granite_speech.GraniteSpeechConformerAttention",
            "granite_speech_plus.GraniteSpeechPlusConformerAttention",
        )
    },
    "grounding_dino.GroundingDinoMultiheadAttention": lambda: ((config(), 4), {}, (_QUERY, _KEY, _KEY, _BIAS)),
    "groupvit.GroupViTAttention": lambda: ((config(),), {}, (_QUERY, None, _KEY)),
    "idefics.perceiver.IdeficsPerceiverAttention": lambda: ((32, 4, 8, True), {}, (_KEY, _QUERY)),
    "kosmos2_5.Kosmos2_5VisionAttention": lambda: ((config(head_dim=8),), {}, (_KEY, _SQUARE)),
    "layoutlmv2.LayoutLMv2SelfAttention": lambda: (
        (config(fast_qkv=False, has_relative_attention_bias=False, has_spatial_attention_bias=False),),
        {},
        (_KEY, torch.zeros(2, 1, 1, 9)),
    ),
    "mask2former.Mask2FormerAttention": lambda: ((32, 4), {}, (_KEY, None, rows(2, 9))),
    "mgp_str.MgpstrAttention": lambda: ((config(attn_drop_rate=0.0, drop_rate=0.0),), {}, (_KEY,)),
    "mm_grounding_dino.MMGroundingDinoMultiheadAttention": lambda: ((config(), 4), {}, (_QUERY, _KEY, _KEY, _BIAS)),
    "omdet_turbo.OmDetTurboMultiheadAttention": lambda: ((config(), 32, 4, 0.0), {}, (_QUERY, _KEY, _KEY, _BIAS)),
    "oneformer.OneFormerAttention": lambda: ((32, 4), {}, (_KEY, None, rows(2, 9))),
    "oneformer.OneFormerTextMapperAttention": lambda: ((32, 4), {}, (_QUERY, _KEY, _KEY)),
    "pp_doclayout_v2.PPDocLayoutV2ReadingOrderSelfAttention": lambda: (
        # up to 5.23 two biases, and no look-up
        (config(has_relative_attention_bias=True, has_spatial_attention_bias=True, _attn_implementation="sdpa"),),
        {},
        (_KEY, torch.zeros(2, 1, 1, 9).double(), _SQUARE),
    ),
    "prophetnet.ProphetNetAttention": lambda: ((config(), 4), {}, (_QUERY, _KEY, torch.zeros(2, 4, 1, 9))),
    "qwen2_5_omni.DiTAttention": lambda: (
        (config(head_dim=8, _attn_implementation="sdpa"),),
        {},
        (_KEY, (torch.rand(1, 9, 8).double(), torch.rand(1, 9, 8).double())),
    ),
    "seggpt.SegGptAttention": lambda: (
        (config(use_relative_position_embeddings=True, image_size=(12, 12), patch_size=4),),
        {},
        (rows(2, 3, 3),),
    ),
    "speecht5.SpeechT5Attention": lambda: ((32, 4), {}, (_QUERY, _KEY, None, _BIAS)),
    "superglue.SuperGlueSelfAttention": lambda: ((config(is_decoder=False),), {}, (_QUERY, None, _KEY, _BIAS)),
    "table_transformer.TableTransformerAttention": lambda: ((32, 4), {}, (_KEY, _SQUARE, _KEY)),
    "trocr.TrOCRAttention": lambda: ((config(), 32, 4), {"is_decoder": True}, (_KEY, None, None, _SQUARE)),
    "tvp.TvpAttention": lambda: ((config(),), {}, (_KEY, _SQUARE)),
    "zoedepth.ZoeDepthMultiheadAttention": lambda: ((32, 4, 0.0), {}, (_QUERY, _KEY, _KEY, _BIAS)),
    **{
        name: lambda: ((config(use_rel_pos=True, image_size=16, patch_size=4), 3), {}, (rows(2, 3, 3),))
        for name in (
            *("sam.SamVisionAttention", "sam.SamVisionSdpaAttention", "sam_hq.SamHQVisionAttention"),
            *("sam_hq.SamHQVisionSdpaAttention", "deepseek_ocr2.DeepseekOcr2SamVisionAttention"),
            *("deepseek_ocr2.DeepseekOcr2SamVisionSdpaAttention", "unlimited_ocr.UnlimitedOcrSamVisionAttention"),
            *("unlimited_ocr.UnlimitedOcrSamVisionSdpaAttention", "got_ocr2.GotOcr2VisionAttention"),
            *("pp_formulanet.PPFormulaNetVisionAttention", "slanext.SLANeXtVisionAttention"),
        )
    },
    **{
        name: lambda: ((_FLASH,), {}, (_QUERY[:, None], _KEY[:, None], _KEY[:, None], _BIAS))
        for name in (
            *("edgetam.EdgeTamAttention", "edgetam_video.EdgeTamVideoAttention", "sam2.Sam2Attention"),
            *("sam2_video.Sam2VideoAttention", "sam3_tracker.Sam3TrackerAttention"),
            "sam3_tracker_video.Sam3TrackerVideoAttention",
        )
    },
    **{
        name: lambda: ((_FLASH,), {}, (_QUERY, _KEY, _KEY, _BIAS))
        for name in ("sam3.Sam3Attention", "sam3_lite_text.Sam3LiteTextAttention")
    },
}

SINGLE = {"gemma4.Gemma4AudioAttention", "layoutlmv2.LayoutLMv2SelfAttention"}


def build(name: str) -> tuple[nn.Module, tuple[Any, ...]]:
    """The module in float64, in float32 if its masks overflow there, and what it is called with."""
    arguments, options, call = MODULES[name]()
    torch.manual_seed(0)
    module = attention_class(name)(*arguments, **options)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    if name in SINGLE:
        return module, tuple(x.float() if isinstance(x, Tensor) else x for x in call)
    return module.double(), call


def heads(x: Tensor, width: int = 8) -> Tensor:
    """Merged heads, split."""
    return x.unflatten(-1, (-1, width)).transpose(1, 2)


def normalized(merged: Tensor, width: int = 8) -> Tensor:
    """Merged heads, every row of every head scaled to length one."""
    return diagonal_product(heads(merged, width)).transpose(1, 2).flatten(2)
