"""`register_prehook` and `register_posthook`: adapters for one's own attention, declared in one call."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, SupportsIndex, TypeAlias, get_args

from torch import nn

from .class_names import nearest
from .mechanisms import Form, Layout, PostHook, PreHook
from .registry import Adapter, HeadShape, Kind, register_adapter

Count: TypeAlias = "int | str | Callable[[nn.Module], int]"
"""A number, the path of an attribute that holds it (``"config.n_head"``, ``"proj.in_features"``), or a function of the
module."""


def register_prehook(
    *classes: type[nn.Module] | str,
    point: str | Sequence[str],
    num_heads: Count | None = None,
    head_dim: Count | None = None,
    form: Form = "merged",
    interleaved: bool = False,
    width: Count | None = None,
    kind: Kind = "softmax",
) -> type[Adapter]:
    """Let `precondition_` convert attention classes by a forward pre-hook on the child that sees the heads' outputs.

    A later call for the same class takes the place of an earlier one, and goes before what this package knows about
    it. :func:`check_adapter` proves on a model that what was declared is right.

    Args:
        classes: the attention classes, or their names, as :func:`register_adapter` takes them.
        point: path below the module of the first child that is called with the heads' outputs, as its first argument:
            the output projection, unless a gate, a norm or a dropout stands before it. Several, where several streams
            leave one attention.
        num_heads, head_dim: how many heads, and how wide one head's output is: a number, the path of an attribute
            below the module, or a function of the module. One of the two is enough.
        form: where the heads lie: ``"merged"``: ``(..., N, H d)``; ``"channels"``: ``(B, H d, ...)``, as in images;
            ``"split"``: ``(..., H, N, d)``; ``"tokens"``: ``(..., N, H, d)``.
        interleaved: merged entry by entry (``d`` before ``H``) and not head by head.
        width: how many of the merged entries are attention's, where others follow; None: all.
        kind: of attention: ``"softmax"``, or ``"class"``, ``"pooling"``, ``"channel"``, ``"linear"``, for which
            `PreconditionConfig` has an option.

    Returns:
        The adapter that was made and registered.

    Raises:
        TypeError, ValueError: an argument is not one of these; of a model that is converted: it has no such child or
            attribute, or the numbers do not fit.

    Example:
        >>> import torch
        >>> import preconditioned_attention as pa
        >>> class MyAttention(torch.nn.Module):
        ...     def __init__(self, width, heads):
        ...         super().__init__()
        ...         self.heads = heads
        ...         self.qkv, self.proj = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)
        ...
        ...     def forward(self, x):
        ...         q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        ...         rows = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1) @ v
        ...         return self.proj(rows.transpose(1, 2).flatten(2))
        >>> adapter = pa.register_prehook(MyAttention, point="proj", num_heads="heads")
        >>> model = MyAttention(16, 4)
        >>> print(pa.precondition_(model).converted[0].head_dim)
        4
    """
    points = (point,) if isinstance(point, str) else tuple(point) if isinstance(point, Sequence) else ()
    if not (points and all(isinstance(path, str) and path for path in points)):
        raise TypeError(f"point must be the path of a child, such as 'proj', or several; got {point!r}")
    declaration = _Declaration("register_prehook", points, num_heads, head_dim, form, interleaved, width)
    return _registered(classes, declaration, kind, DeclaredPreHook)


def register_posthook(
    *classes: type[nn.Module] | str,
    num_heads: Count | None = None,
    head_dim: Count | None = None,
    form: Form = "merged",
    interleaved: bool = False,
    width: Count | None = None,
    kind: Kind = "softmax",
) -> type[Adapter]:
    """:func:`register_prehook` for modules that return the heads' outputs, alone or first in a tuple.

    The arguments are those of :func:`register_prehook`. Heads that are not merged yet (``form="split"`` and
    ``"tokens"``) need no number.

    Raises:
        TypeError, ValueError: as :func:`register_prehook`.

    Example:
        >>> import torch
        >>> import preconditioned_attention as pa
        >>> class Core(torch.nn.Module):
        ...     def forward(self, q, k, v):
        ...         return torch.softmax(q @ k.mT, dim=-1) @ v, None
        >>> adapter = pa.register_posthook(Core, form="split")
        >>> model = Core()
        >>> report = pa.precondition_(model)
        >>> print(model(*torch.ones(3, 1, 2, 5, 4))[0].norm())
        tensor(3.1623)
    """
    declaration = _Declaration("register_posthook", (), num_heads, head_dim, form, interleaved, width)
    return _registered(classes, declaration, kind, DeclaredPostHook)


@dataclass(frozen=True)
class _Declaration:
    """Where the heads are, as the user said it."""

    call: str
    points: tuple[str, ...]
    num_heads: Count | None
    head_dim: Count | None
    form: Form
    interleaved: bool
    width: Count | None

    def __post_init__(self) -> None:
        for name in ("num_heads", "head_dim", "width"):
            _check_count(name, getattr(self, name))
        told = self.num_heads is not None or self.head_dim is not None
        # The same rules as for any layout; the numbers are those of a module, which is not there yet.
        Layout(1 if told else None, self.form, self.interleaved, None if self.width is None else 1)

    def shape(self, module: nn.Module) -> HeadShape:
        """Heads and their width, as far as the module tells, and held against what the points take."""
        heads, head_dim = self._number(module, "num_heads"), self._number(module, "head_dim")
        for where, width in self._merged(module):
            if heads is not None and head_dim is not None and heads * head_dim != width:
                more = "; width= says how many of them are attention's" if heads * head_dim < width else ""
                raise self._error(module, f"{heads} heads of {head_dim} make {heads * head_dim}, {where}{more}")
            given, name = (heads, "num_heads") if head_dim is None else (head_dim, "head_dim")
            if given is not None and width % given:
                raise self._error(module, f"{name}={given} does not divide the {width}, {where}")
            heads = width // head_dim if heads is None and head_dim else heads
            head_dim = width // heads if head_dim is None and heads else head_dim
        return HeadShape(heads, head_dim)

    def layout(self, module: nn.Module) -> Layout:
        """The layout for a hook of ``module``."""
        shape = self.shape(module)
        width = self._number(module, "width")
        return Layout(shape.head_dim, self.form, self.interleaved, width, shape.num_heads)

    def _merged(self, module: nn.Module) -> list[tuple[str, int]]:
        """What the merged entries are counted by, and how many they are."""
        children = [(point, self._child(module, point)) for point in self.points]
        width = self._number(module, "width")
        if width is not None:
            return [("which is width", width)]
        if self.form not in ("merged", "channels"):
            return []
        taken = [(point, _features(child)) for point, child in children]
        return [(f"which is what {point!r} takes", features) for point, features in taken if features is not None]

    def _child(self, module: nn.Module, point: str) -> nn.Module:
        try:
            return module.get_submodule(point)
        except AttributeError:
            hint = nearest(point, [path for path, _ in module.named_modules() if path])
            raise self._error(module, f"it has no child at point={point!r}{hint}") from None

    def _number(self, module: nn.Module, name: str) -> int | None:
        """The number that the argument ``name`` means for ``module``."""
        told: Count | None = getattr(self, name)
        if told is None:
            return None
        value: object = told
        if isinstance(told, str):
            value = self._attribute(module, name, told)
        elif callable(told):
            value = told(module)
        number = operator.index(value) if isinstance(value, SupportsIndex) and not isinstance(value, bool) else 0
        if number < 1:
            raise self._error(module, f"{name}={told!r} is {value!r}; a positive integer is wanted")
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
        return ValueError(f"{self.call} does not fit this {type(module).__name__}: {what}")


class DeclaredPreHook(PreHook):
    """A pre-hook where, and as, the user said."""

    declaration: ClassVar[_Declaration]

    def shape(self, module: nn.Module) -> HeadShape:
        """What the declaration says about ``module``."""
        return self.declaration.shape(module)

    def layout(self, module: nn.Module) -> Layout:
        """What the declaration says about ``module``."""
        return self.declaration.layout(module)

    def points(self, module: nn.Module) -> tuple[str, ...]:
        """The declared children."""
        return self.declaration.points


class DeclaredPostHook(PostHook):
    """A forward hook, as the user said."""

    declaration: ClassVar[_Declaration]

    def shape(self, module: nn.Module) -> HeadShape:
        """What the declaration says about ``module``."""
        return self.declaration.shape(module)

    def layout(self, module: nn.Module) -> Layout:
        """What the declaration says about ``module``."""
        return self.declaration.layout(module)


def _registered(
    classes: tuple[type[nn.Module] | str, ...],
    declaration: _Declaration,
    kind: Kind,
    base: type[DeclaredPreHook] | type[DeclaredPostHook],
) -> type[Adapter]:
    kinds = [name for name in get_args(Kind) if name != "other"]
    if kind not in kinds:
        raise ValueError(f"kind must be one of {', '.join(map(repr, kinds))}; got {kind!r}")
    # One name for both kinds of hook, so that the last declaration takes the place of the one before.
    members = {"declaration": declaration, "kind": kind, "__module__": __name__, "__doc__": base.__doc__}
    return register_adapter(*classes)(type("Declared", (base,), members))


def _check_count(name: str, told: object) -> None:
    number = isinstance(told, int) and not isinstance(told, bool) and told > 0
    path = isinstance(told, str) and all(told.split("."))
    if not (told is None or number or path or callable(told)):
        raise TypeError(
            f"{name} must be a positive integer, the path of an attribute such as 'num_heads' or 'proj.in_features', "
            f"or a function of the module; got {told!r}"
        )


def _features(child: nn.Module) -> int | None:
    """How many features a projection, convolution or norm takes; None where the module does not tell."""
    first = child[0] if isinstance(child, nn.Sequential) and len(child) else child
    for name in ("in_features", "in_channels", "normalized_shape", "num_features"):
        value = getattr(first, name, None)
        value = value[-1] if isinstance(value, tuple) and value else value
        if isinstance(value, int):
            return value
    return None
