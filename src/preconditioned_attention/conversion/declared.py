"""`register_prehook` and `register_posthook`: adapters for users' own attention classes, in one call."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import ClassVar

from torch import nn

from ..config import check_choice
from ..selection import KINDS, AttentionKind
from .adapter import Adapter, HeadShape
from .head_location import Count, HeadLocation
from .layout import Form, Layout
from .mechanisms import PostHook, PreHook
from .registry import register_adapter


def register_prehook(
    *classes: type[nn.Module] | str,
    hook_target: str | Sequence[str] | None = None,
    num_heads: Count | None = None,
    head_dim: Count | None = None,
    form: Form = "merged",
    interleaved: bool = False,
    width: Count | None = None,
    kind: AttentionKind = "softmax",
    point: str | Sequence[str] | None = None,
) -> type[Adapter]:
    """Let `precondition_` convert attention classes by a forward pre-hook on the child that takes the heads' outputs.

    A later call for the same class replaces an earlier one; both precede the adapters of this package.
    :func:`check_adapter` checks the declaration on a model.

    Args:
        classes: the attention classes, or their names, as :func:`register_adapter` takes them.
        hook_target: path below the module of the first child that is called with the heads' outputs, as its first
            argument: the output projection, unless a gate, a norm or a dropout comes before it. Several paths where
            one attention has several outputs.
        num_heads, head_dim: how many heads, and how wide one head's output is: a number, the path of an attribute
            below the module, or a function of the module. One of the two is enough.
        form: where the heads lie: ``"merged"``: ``(..., N, H d)``; ``"channels"``: ``(B, H d, ...)``, as in images;
            ``"split"``: ``(..., H, N, d)``; ``"tokens"``: ``(..., N, H, d)``.
        interleaved: merged entry by entry (``d`` before ``H``) and not head by head.
        width: how many of the merged entries are attention's, where others follow; None: all.
        kind: of attention: ``"softmax"``, ``"class_attention"``, ``"pooling"``, ``"channel"`` or ``"linear"``; the
            argument ``include`` of `precondition_` selects by it.
        point: the former name of ``hook_target``; deprecated.

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
        >>> adapter = pa.register_prehook(MyAttention, hook_target="proj", num_heads="heads")
        >>> model = MyAttention(16, 4)
        >>> print(pa.precondition_(model).converted[0].head_dim)
        4
    """
    if point is not None:
        hook_target = _renamed(hook_target, point)
    targets = (hook_target,) if isinstance(hook_target, str) else hook_target
    if not (isinstance(targets, Sequence) and targets and all(isinstance(path, str) and path for path in targets)):
        raise TypeError(f"hook_target must be the path of a child, such as 'proj', or several; got {hook_target!r}")
    location = HeadLocation(
        hook_targets=tuple(targets),
        num_heads=num_heads,
        head_dim=head_dim,
        form=form,
        interleaved=interleaved,
        width=width,
        source="register_prehook",
    )
    return _registered(classes, location, kind, DeclaredPreHook)


def _renamed(hook_target: str | Sequence[str] | None, point: str | Sequence[str]) -> str | Sequence[str]:
    if hook_target is not None:
        raise TypeError("register_prehook takes hook_target or its former name, point, and not both")
    warnings.warn("register_prehook: point is now hook_target", DeprecationWarning, stacklevel=3)
    return point


def register_posthook(
    *classes: type[nn.Module] | str,
    num_heads: Count | None = None,
    head_dim: Count | None = None,
    form: Form = "merged",
    interleaved: bool = False,
    width: Count | None = None,
    kind: AttentionKind = "softmax",
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
    location = HeadLocation(
        num_heads=num_heads,
        head_dim=head_dim,
        form=form,
        interleaved=interleaved,
        width=width,
        source="register_posthook",
    )
    return _registered(classes, location, kind, DeclaredPostHook)


class DeclaredPreHook(PreHook):
    """A pre-hook as :func:`register_prehook` declares it."""

    location: ClassVar[HeadLocation]

    def shape(self, module: nn.Module) -> HeadShape:
        """Read from ``module`` as declared."""
        return self.location.shape(module)

    def layout(self, module: nn.Module) -> Layout:
        """Read from ``module`` as declared."""
        return self.location.layout(module)

    def hook_targets(self, module: nn.Module) -> tuple[str, ...]:
        """The declared children."""
        return self.location.targets(module)


class DeclaredPostHook(PostHook):
    """A forward hook as :func:`register_posthook` declares it."""

    location: ClassVar[HeadLocation]

    def shape(self, module: nn.Module) -> HeadShape:
        """Read from ``module`` as declared."""
        return self.location.shape(module)

    def layout(self, module: nn.Module) -> Layout:
        """Read from ``module`` as declared."""
        return self.location.layout(module)


def _registered(
    classes: tuple[type[nn.Module] | str, ...],
    location: HeadLocation,
    kind: AttentionKind,
    base: type[DeclaredPreHook] | type[DeclaredPostHook],
) -> type[Adapter]:
    check_choice("kind", kind, KINDS)
    # One name for both kinds of hook: adapters of the same name replace each other.
    members = {"location": location, "kind": kind, "__module__": __name__, "__doc__": base.__doc__}
    return register_adapter(*classes)(type("Declared", (base,), members))
