"""Where the heads' outputs of an attention class are: data, which is read against each module."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import SupportsIndex, TypeAlias

from torch import nn

from .adapter import HeadShape
from .class_names import nearest
from .layout import Form, Layout

Count: TypeAlias = "int | str | Callable[[nn.Module], int]"
"""A number, the path of an attribute that holds it (``"config.n_head"``, ``"proj.in_features"``), or a function of the
module."""


@dataclass(frozen=True, kw_only=True)
class HeadLocation:
    """Where the heads' outputs are. Two of ``num_heads``, ``head_dim`` and ``merged`` give the third.

    Args:
        hook_targets: paths of the children that are called with the heads' outputs; a function where they depend on
            the module. Empty: the module returns the heads' outputs.
        num_heads, head_dim: how many heads, and how wide one head's output is.
        merged: how wide all heads are; None: as many entries as the hook targets take.
        heads: a function that reads both numbers of a module, instead of the three.
        form, interleaved, width: as :class:`Layout` has them.
        source: what declared this, for error messages.
    """

    hook_targets: tuple[str, ...] | Callable[[nn.Module], tuple[str, ...]] = ()
    num_heads: Count | None = None
    head_dim: Count | None = None
    merged: Count | None = None
    heads: Callable[[nn.Module], HeadShape] | None = None
    form: Form = "merged"
    interleaved: bool = False
    width: Count | None = None
    source: str = "its adapter"

    def __post_init__(self) -> None:
        for name in ("num_heads", "head_dim", "merged", "width"):
            _check_count(name, getattr(self, name))
        given = not (self.num_heads is None and self.head_dim is None and self.heads is None)
        # The same rules as for any layout; the numbers are those of a module, which is not there yet.
        Layout(1 if given else None, self.form, self.interleaved, None if self.width is None else 1)

    def targets(self, module: nn.Module) -> tuple[str, ...]:
        """The paths of the children of ``module`` to hook."""
        return self.hook_targets(module) if callable(self.hook_targets) else self.hook_targets

    def shape(self, module: nn.Module) -> HeadShape:
        """The number of heads and their width, checked against what the hook targets take.

        Raises:
            ValueError: ``module`` lacks a child or an attribute, or the numbers do not fit.
        """
        if self.heads is not None:
            return self.heads(module)
        heads, head_dim = self._number(module, "num_heads"), self._number(module, "head_dim")
        for where, merged in self._widths(module):
            self._check_fit(module, heads, head_dim, merged, where)
            heads = merged // head_dim if heads is None and head_dim else heads
            head_dim = merged // heads if head_dim is None and heads else head_dim
        return HeadShape(heads, head_dim)

    def layout(self, module: nn.Module) -> Layout:
        """The layout for a hook of ``module``."""
        shape = self.shape(module)
        width = self._number(module, "width")
        return Layout(shape.head_dim, self.form, self.interleaved, width, shape.num_heads)

    def _check_fit(self, module: nn.Module, heads: int | None, head_dim: int | None, merged: int, where: str) -> None:
        if heads is not None and head_dim is not None and heads * head_dim != merged:
            more = "; width= says how many of them are attention's" if heads * head_dim < merged else ""
            raise self._error(module, f"{heads} heads of {head_dim} make {heads * head_dim}, {where}{more}")
        given, name = (heads, "num_heads") if head_dim is None else (head_dim, "head_dim")
        if given is not None and merged % given:
            raise self._error(module, f"{name}={given} does not divide the {merged}, {where}")

    def _widths(self, module: nn.Module) -> list[tuple[str, int]]:
        """How many merged entries there are, with what says so."""
        children = [(target, self._child(module, target)) for target in self.targets(module)]
        for name in ("width", "merged"):
            given = self._number(module, name)
            if given is not None:
                return [(f"which is {name}", given)]
        if self.form not in ("merged", "channels"):
            return []
        taken = [(target, _features(child)) for target, child in children]
        return [(f"which is what {target!r} takes", features) for target, features in taken if features is not None]

    def _child(self, module: nn.Module, target: str) -> nn.Module:
        try:
            return module.get_submodule(target)
        except AttributeError:
            hint = nearest(target, [path for path, _ in module.named_modules() if path])
            raise self._error(module, f"it has no child {target!r}{hint}") from None

    def _number(self, module: nn.Module, name: str) -> int | None:
        """The number that the argument ``name`` means for ``module``."""
        given: Count | None = getattr(self, name)
        if given is None:
            return None
        value: object = given
        if isinstance(given, str):
            value = self._attribute(module, name, given)
        elif callable(given):
            value = given(module)
        number = operator.index(value) if isinstance(value, SupportsIndex) and not isinstance(value, bool) else 0
        if number < 1:
            raise self._error(module, f"{name}={given!r} is {value!r}; a positive integer is wanted")
        return number

    def _attribute(self, module: nn.Module, name: str, path: str) -> object:
        value: object = module
        for part in path.split("."):
            if not hasattr(value, part):
                hint = nearest(part, dir(value))
                raise self._error(module, f"{name}={path!r}: {type(value).__name__} has no attribute {part!r}{hint}")
            value = getattr(value, part)
        return value

    def _error(self, module: nn.Module, what: str) -> ValueError:
        return ValueError(f"{self.source} does not fit this {type(module).__name__}: {what}")


def _check_count(name: str, given: object) -> None:
    number = isinstance(given, int) and not isinstance(given, bool) and given > 0
    path = isinstance(given, str) and all(given.split("."))
    if not (given is None or number or path or callable(given)):
        raise TypeError(
            f"{name} must be a positive integer, the path of an attribute such as 'num_heads' or 'proj.in_features', "
            f"or a function of the module; got {given!r}"
        )


def _features(child: nn.Module) -> int | None:
    """How many features a projection, convolution or norm takes; None where the module has no such attribute."""
    first = child[0] if isinstance(child, nn.Sequential) and len(child) else child
    for name in ("in_features", "in_channels", "normalized_shape", "num_features"):
        value = getattr(first, name, None)
        value = value[-1] if isinstance(value, tuple) and value else value
        if isinstance(value, int):
            return value
    return None
