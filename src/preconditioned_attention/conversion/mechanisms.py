"""The two ways in that most adapters share: a class swap and a forward pre-hook. Both act on one instance only."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from ..layers import Preconditioner
from .registry import Adapter


def text_digest(function: Callable[..., Any]) -> str | None:
    """A short digest of a function's source text, to tell whether it is the one that ours was written against.

    None where the source is not at hand.
    """
    try:
        return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:16]
    except OSError:
        return None


class ClassSwap(Adapter):
    """The instance becomes one of ``replacement``, a subclass of its class with a forward of its own.

    Only the exact class is swapped: a subclass may have more to its forward than the replacement knows.
    """

    mechanism = "class swap"
    original: ClassVar[type[nn.Module]]
    replacement: ClassVar[type[nn.Module]]

    def serves(self, cls: type[nn.Module], registered: type[nn.Module]) -> bool:
        """Whether ``cls`` is the class itself, or already the replacement."""
        return cls is registered or cls is self.replacement

    def attach(self, module: nn.Module, preconditioner: Preconditioner) -> None:
        """Swap the class in."""
        module.__class__ = self.replacement

    def detach(self, module: nn.Module) -> None:
        """Swap it back."""
        module.__class__ = self.original


class RowHook:
    """A forward pre-hook for the first module that sees the merged heads ``(..., N, H d)``.

    A class, not a closure, so that a converted model can be pickled and copied: the copy's hook holds the copy's
    preconditioner.
    """

    def __init__(self, preconditioner: Preconditioner, head_dim: int) -> None:
        self.preconditioner = preconditioner
        self.head_dim = head_dim

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Split the heads, precondition, merge them again."""
        merged, *rest = args
        heads = merged.unflatten(-1, (-1, self.head_dim)).transpose(-3, -2)
        return self.preconditioner(heads).transpose(-3, -2).flatten(-2), *rest


class PreHook(Adapter):
    """A :class:`RowHook` on the child named ``point``, the first module that sees the merged heads."""

    mechanism = "pre-hook"
    point: ClassVar[str]

    def attach(self, module: nn.Module, preconditioner: Preconditioner) -> None:
        """Hook the attachment point."""
        head_dim = self.shape(module).head_dim
        assert head_dim is not None, "a pre-hook splits the heads by their width"
        module.get_submodule(self.point).register_forward_pre_hook(RowHook(preconditioner, head_dim))

    def detach(self, module: nn.Module) -> None:
        """Find the hook by its type (a copied model has no handles) and remove it."""
        hooks = module.get_submodule(self.point)._forward_pre_hooks
        for key in [key for key, hook in hooks.items() if isinstance(hook, RowHook)]:
            del hooks[key]
