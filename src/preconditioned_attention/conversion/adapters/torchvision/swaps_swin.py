"""torchvision: Swin, 1, 2 and 3d.

Swin passes its projection's weight to a function, so that a hook on the projection is never called.
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
from torchvision.models.video import swin_transformer as swin3d

from ...._symbolic import one_node
from ....layers import Preconditioner
from ...adapter import HeadShape, read_int
from ...registry import register_named
from ..known_text_swap import KnownTextSwap

_OTHER_REGION = -100.0  # what upstream adds to scores across regions


class _ShiftedWindows:
    """The forward of the three Swins; mixed in before the upstream class."""

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
    """`ShiftedWindowAttention3d` of Video Swin, whose windows are at most as large as the input."""

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


class _ShiftedWindowSwap(KnownTextSwap):
    honors_backend = True

    def shape(self, module: nn.Module) -> HeadShape:
        """From the module's heads and the width of its `qkv`."""
        heads, width = read_int(module, "num_heads"), read_int(module.qkv, "out_features")
        return HeadShape(heads, width // (3 * heads) if heads and width else None)


# The digests are those of torchvision 0.29.1.
@register_named("torchvision.models.swin_transformer.ShiftedWindowAttention")
class ShiftedWindowSwap(_ShiftedWindowSwap):
    """Swin."""

    original = swin.ShiftedWindowAttention
    replacement = PreconditionedShiftedWindowAttention
    methods: ClassVar = {"forward": "5163df6ea97f0e6c"}
    functions: ClassVar = {swin.shifted_window_attention: "83f7a786345e8ce6"}


@register_named("torchvision.models.swin_transformer.ShiftedWindowAttentionV2")
class ShiftedWindowV2Swap(_ShiftedWindowSwap):
    """Swin 2."""

    original = swin.ShiftedWindowAttentionV2
    replacement = PreconditionedShiftedWindowAttentionV2
    methods: ClassVar = {"forward": "00ef00213659622c"}
    functions: ClassVar = {swin.shifted_window_attention: "83f7a786345e8ce6"}


@register_named("torchvision.models.video.swin_transformer.ShiftedWindowAttention3d")
class ShiftedWindow3dSwap(_ShiftedWindowSwap):
    """Video Swin."""

    original = swin3d.ShiftedWindowAttention3d
    replacement = PreconditionedShiftedWindowAttention3d
    methods: ClassVar = {"forward": "07245cd62550316a"}
    functions: ClassVar = {swin3d.shifted_window_attention_3d: "1746e055dacb298c"}
