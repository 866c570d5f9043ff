"""This package's own layers, which look for their preconditioner themselves: adding the child is all there is to do."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from ....layers import Preconditioner
from ...registry import Adapter, HeadShape, read_int, register_named

_ROOM = "preconditioned_attention.layers"


@register_named(f"{_ROOM}.multihead.MultiheadAttention", f"{_ROOM}.window.WindowAttention")
class LayerChild(Adapter):
    """Softmax attention over tokens."""

    mechanism: ClassVar[str] = "child module"
    honours_backend: ClassVar[bool] = True

    def shape(self, module: nn.Module) -> HeadShape:
        """From the module's attributes."""
        return HeadShape(read_int(module, "num_heads"), read_int(module, "head_dim"))

    def attach(self, module: nn.Module, preconditioner: Preconditioner) -> None:
        """The layer calls the child as soon as it has one."""

    def detach(self, module: nn.Module) -> None:
        """The layer is plain as soon as it has none."""


@register_named(f"{_ROOM}.nystrom.NystromAttention")
class NystromChild(LayerChild):
    """The layer honours ``placement``."""

    value_skip = True
    honours_backend = False
    definition = 'before the convolution of the values is added; with placement="post_skip" after'


@register_named(f"{_ROOM}.cross_covariance.CrossCovarianceAttention", f"{_ROOM}.channel_group.ChannelGroupAttention")
class ChannelChild(LayerChild):
    """Attention between channels."""

    kind = "channel"
    honours_backend = False


@register_named(f"{_ROOM}.linear.LinearAttention")
class LinearChild(LayerChild):
    """Linear attention with an output per head."""

    kind = "linear"
    honours_backend = False
    definition = "the quotient of the two sums, per head"
