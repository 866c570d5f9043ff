"""timm's attention classes in which something is added to the heads before any module sees them: class swaps."""

from __future__ import annotations

from typing import ClassVar

from timm.models import efficientformer_v2, mvitv2
from torch import Tensor, nn

from ...._symbolic import one_node
from ....layers import Preconditioner
from ...mechanisms import ClassSwap, text_digest
from ...registry import HeadShape, class_name, read_int, register_named


class KnownForwardSwap(ClassSwap):
    """A class swap for one text of upstream's forward; any other is refused, for it may compute something else."""

    known_forward: ClassVar[str]

    def refusal(self, module: nn.Module) -> str | None:
        """A timm whose forward the replacement was not written against."""
        if text_digest(self.original.forward) == self.known_forward:
            return None
        return f"this timm's {class_name(self.original)}.forward is another than timm 1.0.31's, which we replace"


class PreconditionedMultiScaleAttention(mvitv2.MultiScaleAttention):
    """MViTv2's attention: `C` before the pooled query is added to the heads (residual pooling)."""

    preconditioner: Preconditioner

    @one_node
    def forward(self, x: Tensor, feat_size: list[int]) -> tuple[Tensor, list[int]]:
        """As upstream; ``(B, N, C)`` and the map's size in, ``(B, N', dim_out)`` and its size out."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        q, q_size = self._pooled(q, self.pool_q, self.norm_q, feat_size)
        k, k_size = self._pooled(k, self.pool_k, self.norm_k, feat_size)
        v, _ = self._pooled(v, self.pool_v, self.norm_v, feat_size)
        scores = (q * self.scale) @ k.transpose(-2, -1)
        if self.rel_pos_type == "spatial":
            scores = mvitv2.cal_rel_pos_type(
                scores, q, self.has_cls_token, q_size, k_size, self.rel_pos_h, self.rel_pos_w
            )
        heads = self.preconditioner(scores.softmax(dim=-1) @ v)
        if self.residual_pooling:
            heads = heads + q
        return self.proj(heads.transpose(1, 2).flatten(2)), q_size

    def _pooled(
        self, x: Tensor, pool: nn.Module | None, norm: nn.Module | None, size: list[int]
    ) -> tuple[Tensor, list[int]]:
        """Queries, keys or values ``(B, H, N, d)`` pooled over the map but for the class token; the map's size."""
        if pool is not None:
            x, class_token = mvitv2.reshape_pre_pool(x, size, self.has_cls_token)
            x, size = mvitv2.reshape_post_pool(pool(x), self.num_heads, class_token)
        return x if norm is None else norm(x), size


@register_named("timm.models.mvitv2.MultiScaleAttention")
class MultiScaleAttentionSwap(KnownForwardSwap):
    """Residual pooling adds the query to the heads before the projection."""

    original = mvitv2.MultiScaleAttention
    replacement = PreconditionedMultiScaleAttention
    known_forward = "a69bd66e9ccef67a"

    def shape(self, module: nn.Module) -> HeadShape:
        """From the module's attributes."""
        return HeadShape(read_int(module, "num_heads"), read_int(module, "head_dim"))


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


class _Attention2dShape(KnownForwardSwap):
    def shape(self, module: nn.Module) -> HeadShape:
        """From the module's attributes; a head of the values is wider than one of the keys."""
        return HeadShape(read_int(module, "num_heads"), read_int(module, "d"))


@register_named("timm.models.efficientformer_v2.Attention2d")
class Attention2dSwap(_Attention2dShape):
    """A convolution of the values is added to the heads, and an activation follows, before the projection."""

    original = efficientformer_v2.Attention2d
    replacement = PreconditionedAttention2d
    known_forward = "6508ad546ff97c10"


@register_named("timm.models.efficientformer_v2.Attention2dDownsample")
class Attention2dDownsampleSwap(_Attention2dShape):
    """As :class:`Attention2dSwap`."""

    original = efficientformer_v2.Attention2dDownsample
    replacement = PreconditionedAttention2dDownsample
    known_forward = "ee3e2c20be178bfb"
