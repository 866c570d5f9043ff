"""timm: the hooks of its table, and LeViT's, whose layout depends on the module."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from ...layout import Layout
from ...registry import add_adapter
from ..table_hooks import TablePreHook, register_table
from .tables import HOOKS, LEVIT


class LevitHook(TablePreHook):
    """LeViT's attention: images if it was built with convolutions, sequences otherwise."""

    def layout(self, module: nn.Module) -> Layout:
        """The row's layout, in the form that the module was built for."""
        return replace(super().layout(module), form="channels" if module.use_conv else "merged")


register_table(HOOKS)
add_adapter(LevitHook(LEVIT), "timm.models.levit.Attention", "timm.models.levit.AttentionDownsample")
