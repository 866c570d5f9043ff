"""timm: EfficientFormerV2's attention, which adds a convolution of the values to its heads' outputs."""

from __future__ import annotations

from typing import ClassVar

from timm.models import efficientformer_v2
from torch import Tensor, nn

from ....layers import Preconditioner
from ...adapter import HeadShape, read_int
from ...registry import register_named
from ..known_text_swap import RequiredTextSwap


class PreconditionedAttention2d(efficientformer_v2.Attention2d):
    """EfficientFormerV2's attention: `C` before the convolution of the values is added to the heads."""

    preconditioner: Preconditioner

    def forward(self, x: Tensor) -> Tensor:
        """As upstream; ``(B, C, H, W)`` in and out."""
        if self.stride_conv is not None:
            x = self.stride_conv(x)
        q, k, v = self.q(x), self.k(x), self.v(x)
        scores = _scores(self, q, k) + self.get_attention_biases(x.device)
        weights = self.talking_head2(self.talking_head1(scores).softmax(dim=-1))
        out = _preconditioned_map(self, weights, v).unflatten(-1, self.resolution) + self.v_local(v)
        if self.upsample is not None:
            out = self.upsample(out)
        return self.proj(self.act(out))


class PreconditionedAttention2dDownsample(efficientformer_v2.Attention2dDownsample):
    """EfficientFormerV2's attention between stages; as :class:`PreconditionedAttention2d`, without talking heads."""

    preconditioner: Preconditioner

    def forward(self, x: Tensor) -> Tensor:
        """As upstream; ``(B, C, H, W)`` in, ``(B, out_dim, H / 2, W / 2)`` out."""
        q, k, v = self.q(x), self.k(x), self.v(x)
        weights = (_scores(self, q, k) + self.get_attention_biases(x.device)).softmax(dim=-1)
        out = _preconditioned_map(self, weights, v).unflatten(-1, self.resolution2) + self.v_local(v)
        return self.proj(self.act(out))


Map2d = PreconditionedAttention2d | PreconditionedAttention2dDownsample


def _heads(attention: Map2d, image: Tensor) -> Tensor:
    """``(B, H d, h, w)`` as ``(B, H, N, d)``."""
    return image.flatten(2).unflatten(1, (attention.num_heads, -1)).transpose(-2, -1)


def _scores(attention: Map2d, q: Tensor, k: Tensor) -> Tensor:
    return (_heads(attention, q) @ _heads(attention, k).transpose(-2, -1)) * attention.scale


def _preconditioned_map(attention: Map2d, weights: Tensor, v: Tensor) -> Tensor:
    """`C A` of every head as ``(B, H d, N)``."""
    return attention.preconditioner(weights @ _heads(attention, v)).transpose(-2, -1).flatten(1, 2)


class _Swap(RequiredTextSwap):
    read_in = "timm 1.0.31"

    def shape(self, module: nn.Module) -> HeadShape:
        """From the module's attributes; a head of the values is wider than one of the keys."""
        return HeadShape(read_int(module, "num_heads"), read_int(module, "d"))


@register_named("timm.models.efficientformer_v2.Attention2d")
class Attention2dSwap(_Swap):
    """The convolution is followed by an activation before the projection."""

    original = efficientformer_v2.Attention2d
    replacement = PreconditionedAttention2d
    methods: ClassVar = {"forward": "6508ad546ff97c10"}


@register_named("timm.models.efficientformer_v2.Attention2dDownsample")
class Attention2dDownsampleSwap(_Swap):
    """As :class:`Attention2dSwap`."""

    original = efficientformer_v2.Attention2dDownsample
    replacement = PreconditionedAttention2dDownsample
    methods: ClassVar = {"forward": "ee3e2c20be178bfb"}
