"""torchvision: Swin (1, 2 and 3d), MViT and MaxViT; its ViT is built of `nn.MultiheadAttention`, see `torch`.

Swin hands its projection's weight to a functional, so a hook on the projection never fires; MViT adds the queries to
the heads' outputs before it projects. Both are swapped for classes with a forward of their own, while the upstream
text is the one these were written against. MaxViT calls its projection `merge`, with nothing in between.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import swin_transformer as swin
from torchvision.models.video import mvit
from torchvision.models.video import swin_transformer as swin3d

from ...._symbolic import one_node
from ....layers import Preconditioner
from ...mechanisms import ClassSwap, PreHook, text_digest
from ...registry import HeadShape, read_int, register_named

# Digests of the upstream texts that the replacements below were written against (torchvision 0.29.1).
KNOWN_TEXTS: dict[Callable[..., Any], str] = {
    swin.shifted_window_attention: "83f7a786345e8ce6",
    swin.ShiftedWindowAttention.forward: "5163df6ea97f0e6c",
    swin.ShiftedWindowAttentionV2.forward: "00ef00213659622c",
    swin3d.shifted_window_attention_3d: "1746e055dacb298c",
    swin3d.ShiftedWindowAttention3d.forward: "07245cd62550316a",
    mvit.MultiscaleAttention.forward: "ab6d6ffa46b85812",
}

_OTHER_REGION = -100.0  # what upstream adds to the score of two tokens that only the cyclic shift brought together


class _ShiftedWindows:
    """What the three Swins share; mixed in before the upstream class."""

    preconditioner: Preconditioner
    qkv: nn.Linear
    num_heads: int
    window_size: list[int]
    shift_size: list[int]
    get_relative_position_bias: Callable[..., Tensor]

    @one_node
    def forward(self, x: Tensor) -> Tensor:
        """As upstream; ``(B, H, W, C)`` in and out."""
        sizes = [math.ceil(size / w) * w for size, w in zip(x.shape[1:-1], self.window_size, strict=True)]
        shift = [0 if w >= size else s for w, size, s in zip(self.window_size, sizes, self.shift_size, strict=True)]
        return _shifted_windows(self, x, self.get_relative_position_bias(), self.window_size, shift)

    def _heads(self, windows: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
        """Queries, keys and values ``(B * windows, heads, n, d)`` and the scale of the scores."""
        q, k, v = _split(self.qkv(windows), self.num_heads)
        return q, k, v, q.shape[-1] ** -0.5


class PreconditionedShiftedWindowAttention(_ShiftedWindows, swin.ShiftedWindowAttention):
    """`ShiftedWindowAttention` of Swin, every window's heads passed through its preconditioner."""


class PreconditionedShiftedWindowAttentionV2(_ShiftedWindows, swin.ShiftedWindowAttentionV2):
    """`ShiftedWindowAttentionV2` of Swin 2: cosine attention, and keys without a bias."""

    def _heads(self, windows: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
        bias: Tensor | None = self.qkv.bias
        if bias is not None:
            query, key, value = bias.chunk(3)
            bias = torch.cat([query, torch.zeros_like(key), value])
        q, k, v = _split(F.linear(windows, self.qkv.weight, bias), self.num_heads)
        scale = self.logit_scale.clamp(max=math.log(100.0)).exp()
        return (F.normalize(q, dim=-1) * scale).to(v.dtype), F.normalize(k, dim=-1).to(v.dtype), v, 1.0


class PreconditionedShiftedWindowAttention3d(_ShiftedWindows, swin3d.ShiftedWindowAttention3d):
    """`ShiftedWindowAttention3d` of Video Swin, whose windows shrink to what comes."""

    @one_node
    def forward(self, x: Tensor) -> Tensor:
        """As upstream; ``(B, T, H, W, C)`` in and out."""
        window = [min(size, w) for size, w in zip(x.shape[1:-1], self.window_size, strict=True)]
        shift = [0 if size == w else s for size, w, s in zip(x.shape[1:-1], window, self.shift_size, strict=True)]
        return _shifted_windows(self, x, self.get_relative_position_bias(window), window, shift)


def _shifted_windows(module: Any, x: Tensor, bias: Tensor, window: Sequence[int], shift: Sequence[int]) -> Tensor:
    """Attention inside windows of any number of axes: ``(B, *sizes, C)`` in and out, ``bias`` ``(1, heads, n, n)``."""
    sizes, axes = x.shape[1:-1], tuple(range(1, x.dim() - 1))
    padding = [(-size) % w for size, w in zip(sizes, window, strict=True)]
    x = F.pad(x, (0, 0, *chain.from_iterable((0, pad) for pad in reversed(padding))))
    padded = x.shape[1:-1]
    mask = bias
    if any(shift):
        x = x.roll([-s for s in shift], axes)
        regions = _region_mask(padded, window, shift, bias)
        mask = (bias + regions.unsqueeze(1)).repeat(x.shape[0], 1, 1, 1)
    q, k, v, scale = module._heads(_to_windows(x, window))
    dropout_p = module.attention_dropout if module.training else 0.0
    heads = module.preconditioner.attend(q, k, v, mask.to(q.dtype), dropout_p, scale=scale)
    out = F.dropout(module.proj(heads.transpose(1, 2).flatten(2)), module.dropout, module.training)
    out = _from_windows(out, window, padded)
    if any(shift):
        out = out.roll(list(shift), axes)
    return out[(slice(None), *(slice(size) for size in sizes))].contiguous()


def _region_mask(sizes: Sequence[int], window: Sequence[int], shift: Sequence[int], like: Tensor) -> Tensor:
    """``(windows, n, n)``: 0 between tokens of one region, a large negative number across regions.

    The cyclic shift brings tokens from opposite edges into one window. Along a shifted axis the regions are all but
    the last window, that window's front and its end; an axis that is not shifted has one.
    """
    region = torch.zeros(1, *sizes, 1, device=like.device, dtype=torch.long)
    for axis, (size, w, s) in enumerate(zip(sizes, window, shift, strict=True), start=1):
        if s:
            place = torch.arange(size, device=like.device)
            label = (place >= size - w).long() + (place >= size - s).long()
            region = 3 * region + label.view(-1, *(1,) * (region.dim() - 1 - axis))
    windows = _to_windows(region, window).squeeze(-1)
    across = windows.unsqueeze(1) != windows.unsqueeze(2)
    return torch.zeros(across.shape, device=like.device, dtype=like.dtype).masked_fill(across, _OTHER_REGION)


def _to_windows(x: Tensor, window: Sequence[int]) -> Tensor:
    """``(B, *sizes, C)`` to ``(B * windows, n, C)``; every size is a multiple of its window."""
    counts = [size // w for size, w in zip(x.shape[1:-1], window, strict=True)]
    x = x.reshape(x.shape[0], *chain.from_iterable(zip(counts, window, strict=True)), x.shape[-1])
    order = (0, *range(1, x.dim() - 1, 2), *range(2, x.dim() - 1, 2), x.dim() - 1)
    return x.permute(order).reshape(-1, math.prod(window), x.shape[-1])


def _from_windows(windows: Tensor, window: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """The inverse of :func:`_to_windows`."""
    counts = [size // w for size, w in zip(sizes, window, strict=True)]
    x = windows.reshape(-1, *counts, *window, windows.shape[-1])
    order = (0, *chain.from_iterable((1 + i, 1 + len(counts) + i) for i in range(len(counts))), x.dim() - 1)
    return x.permute(order).reshape(-1, *sizes, x.shape[-1])


def _split(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


class PreconditionedMultiscaleAttention(mvit.MultiscaleAttention):
    """`MultiscaleAttention` of MViT; residual pooling adds the queries after the rows are scaled."""

    preconditioner: Preconditioner

    @one_node
    def forward(self, x: Tensor, thw: tuple[int, int, int]) -> tuple[Tensor, tuple[int, int, int]]:
        """As upstream; ``(B, N, C)``, the class token first, and the grid of the other tokens."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).transpose(1, 3).unbind(dim=2)
        k, k_thw = (k, thw) if self.pool_k is None else self.pool_k(k, thw)
        v = v if self.pool_v is None else self.pool_v(v, thw)[0]
        q, q_thw = (q, thw) if self.pool_q is None else self.pool_q(q, thw)
        scores = (self.scaler * q) @ k.transpose(2, 3)
        if self.rel_pos_h is not None and self.rel_pos_w is not None and self.rel_pos_t is not None:
            scores = mvit._add_rel_pos(scores, q, q_thw, k_thw, self.rel_pos_h, self.rel_pos_w, self.rel_pos_t)
        rows = self.preconditioner(scores.softmax(dim=-1) @ v)
        if self.residual_pool:
            # not in place, as upstream has it: whoever observes the preconditioner holds these rows
            rows = rows + (q if self.residual_with_cls_embed else F.pad(q[:, :, 1:], (0, 0, 1, 0)))
        return self.project(rows.transpose(1, 2).flatten(2)), q_thw


class _KnownSwap(ClassSwap):
    """A swap for one text of the upstream functions only."""

    texts: ClassVar[tuple[Callable[..., Any], ...]]

    def serves(self, cls: type[nn.Module], registered: type[nn.Module]) -> bool:
        """Whether upstream's functions are those that the replacement was written against."""
        return super().serves(cls, registered) and all(text_digest(f) == KNOWN_TEXTS[f] for f in self.texts)

    def shape(self, module: nn.Module) -> HeadShape:
        """From the module's heads and the width of its `qkv`."""
        heads, width = read_int(module, "num_heads"), read_int(module.qkv, "out_features")
        return HeadShape(heads, width // (3 * heads) if heads and width else None)


@register_named("torchvision.models.swin_transformer.ShiftedWindowAttention")
class ShiftedWindowSwap(_KnownSwap):
    """Swin."""

    honours_backend = True
    original = swin.ShiftedWindowAttention
    replacement = PreconditionedShiftedWindowAttention
    texts = (swin.ShiftedWindowAttention.forward, swin.shifted_window_attention)


@register_named("torchvision.models.swin_transformer.ShiftedWindowAttentionV2")
class ShiftedWindowV2Swap(_KnownSwap):
    """Swin 2."""

    honours_backend = True
    original = swin.ShiftedWindowAttentionV2
    replacement = PreconditionedShiftedWindowAttentionV2
    texts = (swin.ShiftedWindowAttentionV2.forward, swin.shifted_window_attention)


@register_named("torchvision.models.video.swin_transformer.ShiftedWindowAttention3d")
class ShiftedWindow3dSwap(_KnownSwap):
    """Video Swin."""

    honours_backend = True
    original = swin3d.ShiftedWindowAttention3d
    replacement = PreconditionedShiftedWindowAttention3d
    texts = (swin3d.ShiftedWindowAttention3d.forward, swin3d.shifted_window_attention_3d)


@register_named("torchvision.models.video.mvit.MultiscaleAttention")
class MultiscaleSwap(_KnownSwap):
    """MViT."""

    original = mvit.MultiscaleAttention
    replacement = PreconditionedMultiscaleAttention
    texts = (mvit.MultiscaleAttention.forward,)


@register_named("torchvision.models.maxvit.RelativePositionalMultiHeadAttention")
class RelativePositionalHook(PreHook):
    """MaxViT, its windows and its grids."""

    point = "merge"

    def shape(self, module: nn.Module) -> HeadShape:
        """From the module's attributes."""
        return HeadShape(read_int(module, "n_heads"), read_int(module, "head_dim"))
