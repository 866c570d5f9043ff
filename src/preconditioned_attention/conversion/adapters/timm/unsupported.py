"""timm: attention classes that cannot be converted."""

from __future__ import annotations

from ...unsupported import UnsupportedClass

_DIFFERENTIAL = (
    "normalized already: differential attention normalizes every head's rows itself (`sub_norm`), which undoes C"
)

UNSUPPORTED = {
    "timm.layers.attention2d.MultiQueryAttentionV2": UnsupportedClass(
        "no module is called with the heads' outputs: they are projected by an einsum with a parameter"
    ),
    "timm.layers.diff_attention.DiffAttention": UnsupportedClass(_DIFFERENTIAL),
    "timm.layers.global_context.GlobalContext": UnsupportedClass(
        "global context: one context vector per image gates the channels, and there are no heads' outputs"
    ),
    "timm.layers.non_local_attn.BilinearAttnTransform": UnsupportedClass(
        "a bilinear transform: weights on both sides of every channel's image, and there are no heads' outputs"
    ),
    "timm.models.csatv2.SpatialTransformerBlock": UnsupportedClass(
        "scalar attention: rows of one entry; equilibrated, only their sign is left"
    ),
    "timm.models.efficientvim.HSMSSD": UnsupportedClass(
        "a state space mixer: its softmax weighs what enters the state, and there are no heads' outputs"
    ),
    "timm.models.mobilevit.LinearSelfAttention": UnsupportedClass(
        "separable linear attention: one context vector gates the values, and there are no heads' outputs"
    ),
    "timm.models.mvitv2.MultiScaleAttentionPoolFirst": UnsupportedClass(
        "no module is called with the heads' outputs: the pooled query is added to them before the projection"
    ),
    "timm.models.swiftformer.EfficientAdditiveAttention": UnsupportedClass(
        "additive attention: no attention weights times values, so there are no heads' outputs"
    ),
    "timm.models.vision_transformer.DiffParallelScalingBlock": UnsupportedClass(_DIFFERENTIAL),
}
