"""Rows of the tables of hooks, and the adapters made from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import nn

from ...layers import Preconditioner
from ...selection import Kind
from ..adapter import HeadShape
from ..class_names import class_name
from ..head_location import HeadLocation
from ..layout import Layout
from ..mechanisms import PostHook, PreHook
from ..normalized import normalized_already
from ..registry import add_adapter
from ..row_hooks import OutputHook


@dataclass(frozen=True, kw_only=True)
class HookRow(HeadLocation):
    """Where the heads' outputs of a class are, and the other properties of its adapter.

    Args:
        kind, definition, parts: as :class:`Adapter` has them.
        normalizes: whether the hook target is a norm of the merged heads, which undoes C where there is one head.
        output_of: path of the child that returns the heads' outputs, if there are no hook targets; empty: the module.
        unsupported_if: a function that says why a module cannot be converted, or None.
    """

    kind: Kind = "softmax"
    definition: str = ""
    parts: tuple[str, ...] = ()
    normalizes: bool = False
    output_of: str = ""
    unsupported_if: Callable[[nn.Module], str | None] | None = None

    def unsupported_reason(self, module: nn.Module) -> str | None:
        """Why ``module`` cannot be converted, or None."""
        reason = None if self.unsupported_if is None else self.unsupported_if(module)
        if reason is not None:
            return reason
        try:
            shape = self.shape(module)
        except ValueError as error:
            return str(error)
        if self.heads is None and shape.head_dim is None:
            return f"cannot tell how wide a head of {class_name(type(module))} is"
        if not self.normalizes:
            return None
        norms = (module.get_submodule(target) for target in self.targets(module))
        return next((why for norm in norms if (why := normalized_already(norm, shape))), None)


class TablePreHook(PreHook):
    """A pre-hook on the hook targets of a row."""

    def __init__(self, row: HookRow) -> None:
        self.row = row
        self.kind, self.definition, self.parts = row.kind, row.definition, row.parts

    def unsupported_reason(self, module: nn.Module) -> str | None:
        """A condition of the row that ``module`` meets, or what the row expects and ``module`` lacks."""
        return self.row.unsupported_reason(module)

    def shape(self, module: nn.Module) -> HeadShape:
        """From the row; unknown if the module lacks an attribute that the row names."""
        try:
            return self.row.shape(module)
        except ValueError:
            return HeadShape(None, None)

    def layout(self, module: nn.Module) -> Layout:
        """From the row; without the number of heads if their width is known, so that any number passes."""
        layout = self.row.layout(module)
        return layout if layout.head_dim is None else replace(layout, num_heads=None)

    def hook_targets(self, module: nn.Module) -> tuple[str, ...]:
        """The hook targets of the row."""
        return self.row.targets(module)


class TablePostHook(TablePreHook, PostHook):
    """A forward hook on a module that returns the heads' outputs."""


class TableChildHook(TablePostHook):
    """A forward hook on a child that returns the heads' outputs."""

    def attach(self, module: nn.Module, preconditioner: Preconditioner) -> None:
        """Hook the child."""
        hook = OutputHook(preconditioner, self.layout(module))
        module.get_submodule(self.row.output_of).register_forward_hook(hook)

    def detach(self, module: nn.Module) -> None:
        """Remove the hook."""
        super().detach(module.get_submodule(self.row.output_of))


def adapter_of(row: HookRow) -> TablePreHook:
    """The adapter for a row: a pre-hook if there are hook targets, otherwise a forward hook."""
    if row.hook_targets:
        return TablePreHook(row)
    return TableChildHook(row) if row.output_of else TablePostHook(row)


def register_table(rows: Mapping[str, HookRow]) -> None:
    """Register an adapter for every row."""
    for name, row in rows.items():
        add_adapter(adapter_of(row), name)
