"""transformers: the hooks of its table, and those of modules that return several streams or a named tuple."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from ....layers import Preconditioner
from ...layout import Form, Layout
from ...registry import add_adapter, composites_named
from ...row_hooks import OutputHook
from ..table_hooks import HookRow, TablePostHook, TablePreHook, register_table
from .class_names import qualified
from .head_shapes import heads_of
from .tables import COMPOSITES, HOOKS, SINGLE_HEAD, SINGLE_HEAD_CLASSES


class StreamsHook(OutputHook):
    """A forward hook for a module that returns two streams' merged heads first; the second may be None."""

    def __init__(self, preconditioner: Preconditioner, first: Layout, second: Layout) -> None:
        super().__init__(preconditioner, first)
        self.second = second

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: tuple[Any, ...]) -> tuple[Any, ...]:
        """Precondition both streams."""
        first, second, *rest = output
        if second is not None:
            second = self.second.apply(self.preconditioner, second)
        return self.layout.apply(self.preconditioner, first), second, *rest


class FieldHook(OutputHook):
    """A forward hook for a module that returns a named tuple with the merged heads as its `hidden_states`."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Precondition `hidden_states`."""
        return output._replace(hidden_states=self.layout.apply(self.preconditioner, output.hidden_states))


class LukeHook(TablePostHook):
    """LUKE: one attention over words and entities, whose rows are returned in two parts."""

    def attach(self, module: nn.Module, preconditioner: Preconditioner) -> None:
        """The same layout for both parts."""
        layout = self.layout(module)
        module.register_forward_hook(StreamsHook(preconditioner, layout, layout))


class LiltHook(TablePostHook):
    """LiLT: two attentions that share their scores, one of text and a narrower one of its layout."""

    def attach(self, module: nn.Module, preconditioner: Preconditioner) -> None:
        """Narrower heads for the second stream."""
        narrow = Layout(_narrow_head_dim(module))
        module.register_forward_hook(StreamsHook(preconditioner, self.layout(module), narrow))


class ReformerHook(TablePostHook):
    """Reformer. Rounds of hashing are merged by their normalizers before the heads are returned; C comes after that."""

    def attach(self, module: nn.Module, preconditioner: Preconditioner) -> None:
        """Hook a field of the named tuple."""
        module.register_forward_hook(FieldHook(preconditioner, self.layout(module)))


class SingleHeadHook(TablePreHook):
    """One head, before a linear projection or a convolution."""

    def layout(self, module: nn.Module) -> Layout:
        """Channels before the tokens where the projection is a convolution."""
        form: Form = "channels" if self.hook_targets(module) == ("proj_out",) else "merged"
        return replace(super().layout(module), form=form)


def _narrow_head_dim(module: Any) -> int:
    head_dim: int = module.attention_head_size // module.channel_shrink_ratio
    return head_dim


def _single_entries(module: nn.Module) -> str | None:
    if _narrow_head_dim(module) > 1:
        return None
    return "rows of one entry in the layout's stream: equilibrated, only their sign is left"


_RETURNED = HookRow(heads=heads_of)
_LILT = HookRow(
    heads=heads_of,
    definition="the heads' outputs of text and of layout, each with its own norm; they share a gain",
    unsupported_if=_single_entries,
)

register_table(HOOKS)
composites_named(*COMPOSITES)
add_adapter(SingleHeadHook(SINGLE_HEAD), *SINGLE_HEAD_CLASSES)
add_adapter(LukeHook(_RETURNED), qualified("luke.LukeSelfAttention"))
add_adapter(LiltHook(_LILT), qualified("lilt.LiltSelfAttention"))
add_adapter(ReformerHook(_RETURNED), qualified("reformer.LSHSelfAttention"), qualified("reformer.LocalSelfAttention"))
