"""The two ways in that most adapters share: a class swap and a forward pre-hook. Both act on one instance only."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
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


@dataclass(frozen=True)
class Layout:
    """Where the heads' outputs lie in the tensor that a hook sees.

    Args:
        head_dim: the width of one head's output.
        form: ``"merged"``: ``(..., N, H d)``; ``"channels"``: ``(B, H d, ...)`` with the tokens behind, as in images;
            ``"split"``: ``(..., H, N, d)``, not merged yet; ``"tokens"``: ``(..., N, H, d)``.
        interleaved: merged entry by entry, ``d`` before ``H``, where the usual order is head by head.
        width: only the first so many of the merged entries are attention's; None: all of them.
    """

    head_dim: int
    form: Literal["merged", "channels", "split", "tokens"] = "merged"
    interleaved: bool = False
    width: int | None = None

    def apply(self, preconditioner: Preconditioner, x: Tensor) -> Tensor:
        """`C` on every head's rows of ``x``; shape and layout stay."""
        if self.form == "split":
            return preconditioner(x)
        if self.form == "tokens":
            return preconditioner(x.transpose(-3, -2)).transpose(-3, -2)
        if self.form == "channels":
            merged = x.flatten(2).transpose(1, 2)
            return self._on_merged(preconditioner, merged).transpose(1, 2).reshape(x.shape)
        # Rows that lie across memory, as cross-covariance attention leaves them, the next layer would copy.
        return self._on_merged(preconditioner, x.contiguous())

    def _on_merged(self, preconditioner: Preconditioner, x: Tensor) -> Tensor:
        if self.width is not None:
            own, other = x[..., : self.width], x[..., self.width :]
            return torch.cat([replace(self, width=None)._on_merged(preconditioner, own), other], dim=-1)
        sizes = (self.head_dim, -1) if self.interleaved else (-1, self.head_dim)
        heads = x.unflatten(-1, sizes)
        heads = heads.movedim(-1, -3) if self.interleaved else heads.transpose(-3, -2)
        heads = preconditioner(heads)
        return (heads.movedim(-3, -1) if self.interleaved else heads.transpose(-3, -2)).flatten(-2)


class RowHook:
    """A forward pre-hook for the first module that sees the heads' outputs, as its first argument.

    A class, not a closure, so that a converted model can be pickled and copied: the copy's hook holds the copy's
    preconditioner.
    """

    def __init__(self, preconditioner: Preconditioner, layout: Layout) -> None:
        self.preconditioner = preconditioner
        self.layout = layout

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Precondition the first argument."""
        first, *rest = args
        return self.layout.apply(self.preconditioner, first), *rest


class AttachmentGuard:
    """A forward pre-hook on the attention itself: raises where a hook of ours is no longer at its place.

    Tools that put a layer round a projection (LoRA), or a new one in its place (merging LoRA, quantisation), leave our
    hook behind, and nothing of ours would run to notice.
    """

    def __init__(self, points: tuple[str, ...]) -> None:
        self.points = points

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Look at every attachment point; traced code was looked at when it was traced."""
        if torch.compiler.is_compiling():
            return
        for point in self.points:
            if not any(isinstance(hook, RowHook) for hook in module.get_submodule(point)._forward_pre_hooks.values()):
                raise RuntimeError(
                    f"the preconditioner of this {type(module).__name__} is no longer attached: its {point!r} has been "
                    "replaced since the conversion, by LoRA or its merging, by quantisation or the like. Call "
                    "restore_(model), and precondition_(model) after that step"
                )


class OutputHook:
    """A forward hook for a module that returns the heads' outputs, alone or first in a tuple."""

    def __init__(self, preconditioner: Preconditioner, layout: Layout) -> None:
        self.preconditioner = preconditioner
        self.layout = layout

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Precondition what comes out."""
        if isinstance(output, Tensor):
            return self.layout.apply(self.preconditioner, output)
        first, *rest = output
        return self.layout.apply(self.preconditioner, first), *rest


class PreHook(Adapter):
    """A :class:`RowHook` on the child named ``point``, the first module that sees the heads' outputs."""

    mechanism = "pre-hook"
    point: ClassVar[str]

    def layout(self, module: nn.Module) -> Layout:
        """Where the heads lie; merged head by head along the last axis unless a subclass says otherwise."""
        head_dim = self.shape(module).head_dim
        assert head_dim is not None, "a pre-hook splits the heads by their width"
        return Layout(head_dim)

    def points(self, module: nn.Module) -> tuple[str, ...]:
        """The children to hook; several where several streams leave one attention."""
        return (self.point,)

    def attach(self, module: nn.Module, preconditioner: Preconditioner) -> None:
        """Hook the attachment points, and watch that the hooks stay there."""
        for point in self.points(module):
            hook = RowHook(preconditioner, self.layout(module))
            module.get_submodule(point).register_forward_pre_hook(hook)
        module.register_forward_pre_hook(AttachmentGuard(self.points(module)))

    def detach(self, module: nn.Module) -> None:
        """Find the hooks by their type (a copied model has no handles), wherever a tool has taken them."""
        for child in module.modules():
            for key, hook in list(child._forward_pre_hooks.items()):
                own = isinstance(hook, RowHook) and hook.preconditioner is module.preconditioner
                if own or (child is module and isinstance(hook, AttachmentGuard)):
                    del child._forward_pre_hooks[key]


class PostHook(PreHook):
    """An :class:`OutputHook` on the module itself, which returns the heads' outputs."""

    mechanism = "forward hook"

    def attach(self, module: nn.Module, preconditioner: Preconditioner) -> None:
        """Hook the module."""
        module.register_forward_hook(OutputHook(preconditioner, self.layout(module)))

    def detach(self, module: nn.Module) -> None:
        """Find the hook by its type and remove it."""
        hooks = module._forward_hooks
        for key in [key for key, hook in hooks.items() if isinstance(hook, OutputHook)]:
            del hooks[key]
