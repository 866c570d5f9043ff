"""The layers of this package, whose forwards use the child `preconditioner` if there is one."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from ....layers import Preconditioner
from ....selection import Kind
from ...adapter import Adapter, HeadShape, read_int
from ...registry import add_adapter


class LayerRow(NamedTuple):
    """What a layer computes; the fields are those of :class:`Adapter`."""

    kind: Kind = "softmax"
    honors_backend: bool = False
    value_skip: bool = False
    definition: str = ""


LAYERS = {
    "multihead.MultiheadAttention": LayerRow(honors_backend=True),
    "window.WindowAttention": LayerRow(honors_backend=True),
    "nystrom.NystromAttention": LayerRow(
        value_skip=True, definition='before the convolution of the values is added; with placement="post_skip" after'
    ),
    "cross_covariance.CrossCovarianceAttention": LayerRow(kind="channel"),
    "channel_group.ChannelGroupAttention": LayerRow(kind="channel"),
    "linear.LinearAttention": LayerRow(kind="linear", definition="the quotient of the two sums, per head"),
}


class LayerChild(Adapter):
    """Nothing beside the child module."""

    mechanism = "child module"

    def __init__(self, row: LayerRow) -> None:
        self.kind, self.honors_backend, self.value_skip, self.definition = row

    def shape(self, module: nn.Module) -> HeadShape:
        """From the module's attributes."""
        return HeadShape(read_int(module, "num_heads"), read_int(module, "head_dim"))

    def attach(self, module: nn.Module, preconditioner: Preconditioner) -> None:
        """Nothing: the layer calls its child."""

    def detach(self, module: nn.Module) -> None:
        """Nothing: without the child the layer is plain."""


for _name, _row in LAYERS.items():
    add_adapter(LayerChild(_row), f"preconditioned_attention.layers.{_name}")
