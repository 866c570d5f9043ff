"""timm's attention classes beside `Attention`: a table of where each one's heads are first seen whole, and how.

A row was written by reading the class's forward (timm 1.0.31). The point is the first module that sees the heads'
outputs, which is not always the projection: gates, norms, upsampling and skips may come before it. A class that has no
such module is in `swaps_mvitv2` or `swaps_iformer`, or is refused below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from ...mechanisms import Layout, PostHook, PreHook
from ...normalised import normalised_already
from ...registry import HeadShape, Kind, class_name, register_named

_NORMS = ("norm", "post_norm")  # points that are norms of the merged heads


@dataclass(frozen=True)
class Row:
    """Attention classes whose heads are found in the same way.

    A module tells two of the number of heads, a head's width and the width of all heads together; the third follows.
    Each is the path of an integer below the module, such as ``"proj.in_features"``; None: not told.

    Args:
        classes: their names below `timm`.
        kind: of attention.
        point: the child that sees the heads' outputs first.
        form, interleaved: as :class:`Layout` has them.
        num_heads, head_dim, merged: where to read the numbers.
        partial: whether other features follow the heads' in what the point sees.
        definition: what counts as a head's output, where that is a choice.
    """

    classes: tuple[str, ...]
    kind: Kind = "softmax"
    point: str = "proj"
    form: Literal["merged", "channels"] = "merged"
    interleaved: bool = False
    num_heads: str | None = "num_heads"
    head_dim: str | None = None
    merged: str | None = None
    partial: bool = False
    definition: str = ""

    def shape(self, module: nn.Module) -> HeadShape:
        """The numbers of ``module``; None for those it does not tell."""
        num_heads, head_dim, merged = (_integer(module, path) for path in (self.num_heads, self.head_dim, self.merged))
        if head_dim is None and merged and num_heads:
            head_dim = merged // num_heads
        if num_heads is None and merged and head_dim:
            num_heads = merged // head_dim
        return HeadShape(num_heads, head_dim)


def _integer(module: nn.Module, path: str | None) -> int | None:
    if path is None:
        return None
    value: object = module
    for name in path.split("."):
        value = getattr(value, name, None)
    return value if isinstance(value, int) else None


TABLE = (
    # Gates and norms of the merged heads come after `norm`, which is always called.
    Row(("layers.attention.AttentionRope", "models.eva.EvaAttention"), point="norm", head_dim="head_dim"),
    Row(
        (
            "models.beit.Attention",
            "models.cait.TalkingHeadAttn",
            "models.convit.GPSA",
            "models.convit.MHSA",
            "models.davit.WindowAttention",
            "models.hieradet_sam2.MultiScaleAttention",
            "models.swin_transformer.WindowAttention",
            "models.swin_transformer_v2.WindowAttention",
            "models.swin_transformer_v2_cr.WindowMultiHeadAttention",
            "models.tnt.Attention",  # its head_dim is that of queries and keys
            "models.twins.GlobalSubSampleAttn",
            "models.twins.LocallyGroupedAttn",
            "models.volo.Attention",
        ),
        merged="proj.in_features",
    ),
    Row(
        (
            "models.fastvit.Attention",
            "models.gcvit.WindowAttentionGlobal",
            "models.metaformer.Attention",
            "models.nextvit.EfficientAttention",
            "models.pvt_v2.Attention",
            "models.vision_transformer_relpos.RelPosAttention",
            "models.vision_transformer_sam.Attention",
        ),
        head_dim="head_dim",
    ),
    Row(("models.efficientformer.Attention", "models.tiny_vit.Attention"), head_dim="val_dim"),
    Row(("models.gemma4_vit.Gemma4Attention",), point="o_proj", head_dim="head_dim"),
    Row(("models.hiera.MaskUnitAttention",), num_heads="heads", head_dim="head_dim"),
    Row(("models.maxxvit.AttentionCl",), head_dim="dim_head"),
    Row(("models.nest.Attention",), interleaved=True, merged="proj.in_features"),
    # Images: the heads are merged along the channels.
    Row(("layers.attention2d.Attention2d", "models.maxxvit.Attention2d"), form="channels", head_dim="dim_head"),
    Row(("layers.attention2d.MultiQueryAttention2d",), point="output", form="channels", head_dim="value_dim"),
    Row(
        ("layers.bottleneck_attn.BottleneckAttn", "layers.halo_attn.HaloAttn"),
        point="pool",
        form="channels",
        head_dim="dim_head_v",
    ),
    Row(
        ("models.cpubone.ConvAttention", "models.lowformer.ConvAttention"),
        point="o_proj",
        form="channels",
        head_dim="head_dim",
    ),
    Row(("models.visformer.Attention",), form="channels", head_dim="head_dim"),
    Row(("models.shvit.SHSA",), form="channels", num_heads=None, head_dim="pdim", merged="pdim", partial=True),
    Row(
        ("models.efficientvit_msra.CascadedGroupAttention",),
        form="channels",
        head_dim="val_dim",
        definition="what a head gives to the projection; what it hands on to the next head stays as it is",
    ),
    # One query per sample: the class token, or what pools the tokens.
    Row(("models.cait.ClassAttn", "models.crossvit.CrossAttention"), kind="class", merged="proj.in_features"),
    Row(("models.volo.ClassAttention",), kind="class", head_dim="head_dim"),
    Row(("layers.attention_pool.AttentionPoolLatent",), kind="pooling", head_dim="head_dim"),
    Row(("layers.attention_pool.AttentionPoolPrr",), kind="pooling", point="post_norm", head_dim="head_dim"),
    Row(
        ("layers.attention_pool2d.AttentionPool2d", "layers.attention_pool2d.RotAttentionPool2d"),
        kind="pooling",
        point="drop",  # the projection is not called for pre_logits
        head_dim="head_dim",
    ),
    # Attention over channels: the rows are still those of the tokens.
    Row(
        ("models.davit.ChannelAttention", "models.edgenext.CrossCovarianceAttn", "models.xcit.XCA"),
        kind="channel",
        merged="proj.in_features",
    ),
    Row(("models.davit.ChannelAttentionV2",), kind="channel", num_heads="groups", head_dim="head_dim"),
    # No matrix of attention weights between tokens, and still an output per head.
    Row(
        ("models.coat.FactorAttnConvRelPosEnc",),
        kind="linear",
        merged="proj.in_features",
        definition="the sum of factorised attention and the convolutional position encoding of the values",
    ),
    Row(
        ("models.volo.OutlookAttention",),
        kind="linear",
        merged="proj.in_features",
        definition="a token's sum over the windows that hold it, after folding",
    ),
    Row(
        ("models.efficientvit_mit.LiteMLA",),
        kind="linear",
        form="channels",
        num_heads=None,
        head_dim="dim",
        merged="proj.conv.in_channels",
        definition="the normalised linear attention of one head at one scale; C cancels the normaliser",
    ),
    Row(
        ("layers.lambda_layer.LambdaLayer",),
        kind="linear",
        point="pool",
        form="channels",
        head_dim="dim_v",
        definition="the content and position lambdas applied to one head's query, before pooling",
    ),
)


class TableHook(PreHook):
    """The pre-hook that a row of the table describes."""

    row: ClassVar[Row]

    def refusal(self, module: nn.Module) -> str | None:
        """A version of timm, or a changed module, that lacks what the row reads."""
        for point in self.points(module):
            if not isinstance(getattr(module, point, None), nn.Module):
                return f"this timm's {class_name(type(module))} has no module `{point}` that sees the heads' outputs"
        if self.shape(module).head_dim is None:
            return f"cannot tell how wide a head of {class_name(type(module))} is"
        if self.row.point in _NORMS:
            return normalised_already(getattr(module, self.row.point), self.shape(module))
        return None

    def shape(self, module: nn.Module) -> HeadShape:
        """From the module's attributes and weights."""
        return self.row.shape(module)

    def layout(self, module: nn.Module) -> Layout:
        """As the row says."""
        shape = self.shape(module)
        assert shape.head_dim is not None, "refused otherwise"
        width = shape.num_heads * shape.head_dim if self.row.partial and shape.num_heads else None
        return Layout(shape.head_dim, self.row.form, self.row.interleaved, width)


def _register(row: Row, base: type[TableHook] = TableHook) -> None:
    options = {"__module__": __name__, "row": row, "kind": row.kind, "point": row.point, "definition": row.definition}
    register_named(*(f"timm.{name}" for name in row.classes))(type(base.__name__, (base,), options))


class LevitHook(TableHook):
    """LeViT's attention, whose layout depends on how it was built."""

    def layout(self, module: nn.Module) -> Layout:
        """Images with convolutions, sequences without."""
        head_dim = self.shape(module).head_dim
        assert head_dim is not None, "refused otherwise"
        return Layout(head_dim, "channels" if module.use_conv else "merged")


class ParallelBlockHook(TableHook):
    """A block that holds its attention: projected on its own, or in one with what the MLP gives."""

    def points(self, module: nn.Module) -> tuple[str, ...]:
        """The projection that is there."""
        return ("out_proj" if getattr(module, "attn_out_proj", None) is None else "attn_out_proj",)


for _row in TABLE:
    _register(_row)
_register(Row(("models.levit.Attention", "models.levit.AttentionDownsample"), head_dim="val_dim"), LevitHook)
_register(
    Row(("models.vision_transformer.ParallelScalingBlock",), point="attn_out_proj", head_dim="head_dim", partial=True),
    ParallelBlockHook,
)


@register_named("timm.layers.other_pool.SimPool1d", "timm.layers.other_pool.SimPool2d")
class SimPoolHook(PostHook):
    """SimPool: one query, the tokens' mean, and no projection; it returns its heads."""

    kind = "pooling"
    point = "its output"

    def refusal(self, module: nn.Module) -> str | None:
        """A power of the output, which is no longer the heads' rows."""
        return None if module.gamma is None else "with `gamma` SimPool returns a power of its heads' outputs"

    def shape(self, module: nn.Module) -> HeadShape:
        """From the module's attributes."""
        return HeadShape(_integer(module, "num_heads"), _integer(module, "head_dim"))
