"""timm: where the heads' outputs of its attention classes are, beside those in the files of swaps.

Written by reading each class's forward (timm 1.0.31). The hook target is the first module that is called with the
heads' outputs, which is not always the projection: gates, norms, upsampling and skips may come before it.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ..table_hooks import HookRow


def _width_of_all_heads(module: Any) -> int:
    width: int = module.num_heads * module.head_dim
    return width


def _present_projection(module: nn.Module) -> tuple[str, ...]:
    """Attention is projected by itself, or in one projection with what the MLP gives."""
    return ("out_proj" if getattr(module, "attn_out_proj", None) is None else "attn_out_proj",)


def _power_of_output(module: nn.Module) -> str | None:
    return None if module.gamma is None else "with `gamma` SimPool returns a power of its heads' outputs"


_PROJ = HookRow(hook_targets=("proj",), num_heads="num_heads")
_PROJ_HEAD_DIM = HookRow(hook_targets=("proj",), num_heads="num_heads", head_dim="head_dim")
_PROJ_VAL_DIM = HookRow(hook_targets=("proj",), num_heads="num_heads", head_dim="val_dim")
# Gates and norms of the merged heads come after `norm`, which is always called.
_NORM = HookRow(hook_targets=("norm",), num_heads="num_heads", head_dim="head_dim", normalizes=True)
# Images: the heads are merged along the channels.
_PROJ_2D = HookRow(hook_targets=("proj",), num_heads="num_heads", head_dim="dim_head", form="channels")
_O_PROJ_2D = HookRow(hook_targets=("o_proj",), num_heads="num_heads", head_dim="head_dim", form="channels")
_POOL_2D = HookRow(hook_targets=("pool",), num_heads="num_heads", head_dim="dim_head_v", form="channels")
# One query per sample: the class token, or the one that pools the tokens.
_CLASS = HookRow(hook_targets=("proj",), num_heads="num_heads", kind="class_attention")
_DROP = HookRow(  # the projection is not called for pre_logits
    hook_targets=("drop",), num_heads="num_heads", head_dim="head_dim", kind="pooling"
)
_SIM_POOL = HookRow(num_heads="num_heads", head_dim="head_dim", kind="pooling", unsupported_if=_power_of_output)
# Attention over channels: the rows are still those of the tokens.
_CHANNEL = HookRow(hook_targets=("proj",), num_heads="num_heads", kind="channel")

_ROWS = {
    "layers.attention.Attention": _NORM,  # subclasses, and versions whose forward is not the one that is swapped
    "layers.attention.AttentionRope": _NORM,
    "layers.attention2d.Attention2d": _PROJ_2D,
    "layers.attention2d.MultiQueryAttention2d": HookRow(
        hook_targets=("output",), num_heads="num_heads", head_dim="value_dim", form="channels"
    ),
    "layers.attention_pool.AttentionPoolLatent": HookRow(
        hook_targets=("proj",), num_heads="num_heads", head_dim="head_dim", kind="pooling"
    ),
    "layers.attention_pool.AttentionPoolPrr": HookRow(
        hook_targets=("post_norm",), num_heads="num_heads", head_dim="head_dim", kind="pooling", normalizes=True
    ),
    "layers.attention_pool2d.AttentionPool2d": _DROP,
    "layers.attention_pool2d.RotAttentionPool2d": _DROP,
    "layers.bottleneck_attn.BottleneckAttn": _POOL_2D,
    "layers.halo_attn.HaloAttn": _POOL_2D,
    "layers.lambda_layer.LambdaLayer": HookRow(
        hook_targets=("pool",),
        num_heads="num_heads",
        head_dim="dim_v",
        form="channels",
        kind="linear",
        definition="the content and position lambdas applied to one head's query, before pooling",
    ),
    "layers.other_pool.SimPool1d": _SIM_POOL,
    "layers.other_pool.SimPool2d": _SIM_POOL,
    "models.beit.Attention": _PROJ,
    "models.cait.ClassAttn": _CLASS,
    "models.cait.TalkingHeadAttn": _PROJ,
    "models.coat.FactorAttnConvRelPosEnc": HookRow(
        hook_targets=("proj",),
        num_heads="num_heads",
        kind="linear",
        definition="the sum of factorized attention and the convolutional position encoding of the values",
    ),
    "models.convit.GPSA": _PROJ,
    "models.convit.MHSA": _PROJ,
    "models.cpubone.ConvAttention": _O_PROJ_2D,
    "models.crossvit.CrossAttention": _CLASS,
    "models.davit.ChannelAttention": _CHANNEL,
    "models.davit.ChannelAttentionV2": HookRow(
        hook_targets=("proj",), num_heads="groups", head_dim="head_dim", kind="channel"
    ),
    "models.davit.WindowAttention": _PROJ,
    "models.edgenext.CrossCovarianceAttn": _CHANNEL,
    "models.efficientformer.Attention": _PROJ_VAL_DIM,
    "models.efficientvit_mit.LiteMLA": HookRow(
        hook_targets=("proj",),
        head_dim="dim",
        merged="proj.conv.in_channels",
        form="channels",
        kind="linear",
        definition="the normalized linear attention of one head at one scale; C cancels the normalizer",
    ),
    "models.efficientvit_msra.CascadedGroupAttention": HookRow(
        hook_targets=("proj",),
        num_heads="num_heads",
        head_dim="val_dim",
        form="channels",
        definition="what the projection takes from a head; what the next head takes stays as it is",
    ),
    "models.eva.EvaAttention": _NORM,
    "models.fastvit.Attention": _PROJ_HEAD_DIM,
    "models.gcvit.WindowAttentionGlobal": _PROJ_HEAD_DIM,
    "models.gemma4_vit.Gemma4Attention": HookRow(hook_targets=("o_proj",), num_heads="num_heads", head_dim="head_dim"),
    "models.hiera.MaskUnitAttention": HookRow(hook_targets=("proj",), num_heads="heads", head_dim="head_dim"),
    "models.hieradet_sam2.MultiScaleAttention": _PROJ,
    "models.lowformer.ConvAttention": _O_PROJ_2D,
    "models.maxxvit.Attention2d": _PROJ_2D,
    "models.maxxvit.AttentionCl": HookRow(hook_targets=("proj",), num_heads="num_heads", head_dim="dim_head"),
    "models.metaformer.Attention": _PROJ_HEAD_DIM,
    "models.nest.Attention": HookRow(hook_targets=("proj",), num_heads="num_heads", interleaved=True),
    "models.nextvit.EfficientAttention": _PROJ_HEAD_DIM,
    "models.pvt_v2.Attention": _PROJ_HEAD_DIM,
    "models.shvit.SHSA": HookRow(  # the features that are not attended to follow
        hook_targets=("proj",), num_heads=1, head_dim="pdim", width="pdim", form="channels"
    ),
    "models.swin_transformer.WindowAttention": _PROJ,
    "models.swin_transformer_v2.WindowAttention": _PROJ,
    "models.swin_transformer_v2_cr.WindowMultiHeadAttention": _PROJ,
    "models.tiny_vit.Attention": _PROJ_VAL_DIM,
    "models.tnt.Attention": _PROJ,  # its head_dim is that of queries and keys
    "models.twins.GlobalSubSampleAttn": _PROJ,
    "models.twins.LocallyGroupedAttn": _PROJ,
    "models.visformer.Attention": HookRow(
        hook_targets=("proj",), num_heads="num_heads", head_dim="head_dim", form="channels"
    ),
    "models.vision_transformer.ParallelScalingBlock": HookRow(
        hook_targets=_present_projection, num_heads="num_heads", head_dim="head_dim", width=_width_of_all_heads
    ),
    "models.vision_transformer_relpos.RelPosAttention": _PROJ_HEAD_DIM,
    "models.vision_transformer_sam.Attention": _PROJ_HEAD_DIM,
    "models.volo.Attention": _PROJ,
    "models.volo.ClassAttention": HookRow(
        hook_targets=("proj",), num_heads="num_heads", head_dim="head_dim", kind="class_attention"
    ),
    "models.volo.OutlookAttention": HookRow(
        hook_targets=("proj",),
        num_heads="num_heads",
        kind="linear",
        definition="a token's sum over the windows that hold it, after folding",
    ),
    "models.xcit.XCA": _CHANNEL,
}
HOOKS = {f"timm.{name}": row for name, row in _ROWS.items()}

LEVIT = HookRow(hook_targets=("proj",), num_heads="num_heads", head_dim="val_dim")
