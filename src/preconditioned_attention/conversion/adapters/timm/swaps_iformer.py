"""timm's iFormer, which older versions do not have: its one head is gated before the projection, so a class swap."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from timm.models import iformer
from torch import Tensor, nn

from ....layers import Preconditioner
from ...adapter import HeadShape
from ...registry import register_named
from ..known_text_swap import RequiredTextSwap


class PreconditionedSHMA(iformer.SHMA):
    """iFormer's attention: `C` before the gate is applied to the head's output."""

    preconditioner: Preconditioner

    def forward(self, x: Tensor) -> Tensor:
        """As upstream; ``(B, C, H, W)`` in and out, attention within windows if it has a window size."""
        size = self.window_size
        if not size or size < 0:
            return self._attended(x)
        height, width = x.shape[-2:]
        x = F.pad(x, (0, -width % size, 0, -height % size))
        out = self._window_reverse(self._attended(self._window_partition(x, size)), size, *x.shape[-2:])
        return out[:, :, :height, :width].contiguous()

    def _attended(self, x: Tensor) -> Tensor:
        """Attention over all of ``x``, gated and projected."""
        v, gate = self.gate_act(self.v_gate(x)).chunk(2, dim=1)
        q, k, v = (image.flatten(2).transpose(1, 2).unsqueeze(1) for image in (self.q(x), self.k(x), v))
        if self.fused_attn:
            rows = self.preconditioner.attend(q, k, v, dropout_p=self.attn_drop.p if self.training else 0.0)
        else:
            weights = self.attn_drop(((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1))
            rows = self.preconditioner(weights @ v)
        return self.proj(rows.squeeze(1).transpose(1, 2).unflatten(-1, x.shape[-2:]) * gate)


@register_named("timm.models.iformer.SHMA")
class SHMASwap(RequiredTextSwap):
    """One head, multiplied by a gate before any module is called with it."""

    honors_backend = True
    original = iformer.SHMA
    replacement = PreconditionedSHMA
    methods: ClassVar = {"forward": "107b2a76063f47f8"}
    read_in = "timm 1.0.31"

    def shape(self, module: nn.Module) -> HeadShape:
        """One head, as wide as half of what the convolution of values and gate gives."""
        convolutions = (part for part in module.get_submodule("v_gate").modules() if isinstance(part, nn.Conv2d))
        return HeadShape(1, next(convolutions).out_channels // 2)
