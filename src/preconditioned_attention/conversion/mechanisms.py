"""The two ways in that most adapters share: a class swap and a forward pre-hook. Both act on one instance only."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from .._symbolic import is_symbolic, trace_into
from ..layers import Preconditioner
from ..layers.call_record import raise_while_tracing
from .registry import Adapter
from .saving.unpickling import Unpickled


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

    Example:
        >>> import torch
        >>> import preconditioned_attention as pa
        >>> from preconditioned_attention.conversion import ClassSwap, HeadShape
        >>> class Core(torch.nn.Module):
        ...     def forward(self, q, k, v):
        ...         return torch.nn.functional.scaled_dot_product_attention(q, k, v)
        >>> class PreconditionedCore(Core):
        ...     def forward(self, q, k, v):
        ...         return self.preconditioner.attend(q, k, v)
        >>> @pa.register_adapter(Core)
        ... class CoreAdapter(ClassSwap):
        ...     original, replacement = Core, PreconditionedCore
        ...     honors_backend = True
        ...
        ...     def shape(self, module):
        ...         return HeadShape(num_heads=None, head_dim=None)
        >>> model = Core()
        >>> report = pa.precondition_(model)
        >>> print(model(*torch.ones(3, 1, 1, 2, 4)))
        tensor([[[[0.5000, 0.5000, 0.5000, 0.5000],
                  [0.5000, 0.5000, 0.5000, 0.5000]]]])
    """

    mechanism = "class swap"
    original: ClassVar[type[nn.Module]]
    replacement: ClassVar[type[nn.Module]]

    def supports(self, cls: type[nn.Module], registered: type[nn.Module]) -> bool:
        """Whether ``cls`` is the class itself, or already the replacement."""
        return cls is registered or cls is self.replacement

    def attach(self, module: nn.Module, preconditioner: Preconditioner) -> None:
        """Swap the class in."""
        module.__class__ = self.replacement

    def detach(self, module: nn.Module) -> None:
        """Swap it back."""
        module.__class__ = self.original


Form = Literal["merged", "channels", "split", "tokens"]


@dataclass(frozen=True)
class Layout:
    """Where the heads' outputs lie in the tensor that a hook sees.

    Args:
        head_dim: the width of one head's output; merged heads are split by it, or by ``num_heads``.
        form: ``"merged"``: ``(..., N, H d)``; ``"channels"``: ``(B, H d, ...)`` with the tokens behind, as in images;
            ``"split"``: ``(..., H, N, d)``, not merged yet; ``"tokens"``: ``(..., N, H, d)``.
        interleaved: merged entry by entry, ``d`` before ``H``, where the usual order is head by head.
        width: only the first so many of the merged entries are attention's; None: all of them.
        num_heads: how many heads there are; what arrives is held against it. None: as many as come.

    Raises:
        ValueError: there is no such form, it does not go with the other arguments, or the numbers are not positive.

    Example:
        >>> import torch
        >>> import preconditioned_attention as pa
        >>> from preconditioned_attention.conversion import Layout
        >>> c = pa.layers.Preconditioner(pa.PreconditionConfig())
        >>> Layout(head_dim=2).apply(c, torch.tensor([[[3.0, 4.0, 0.0, 2.0]]]))
        tensor([[[0.6000, 0.8000, 0.0000, 1.0000]]])
    """

    head_dim: int | None = None
    form: Form = "merged"
    interleaved: bool = False
    width: int | None = None
    num_heads: int | None = None

    def __post_init__(self) -> None:
        if self.form not in get_args(Form):
            raise ValueError(f"form must be one of {', '.join(map(repr, get_args(Form)))}; got {self.form!r}")
        merged = self.form in ("merged", "channels")
        if merged and self.head_dim is None and self.num_heads is None:
            raise ValueError(f"num_heads or head_dim must be given for form={self.form!r}: it splits merged heads")
        if not merged and (self.interleaved or self.width is not None):
            raise ValueError(f"interleaved and width concern merged heads; form={self.form!r} has them apart")
        for name in ("head_dim", "width", "num_heads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be positive; got {value!r}")

    def apply(self, preconditioner: Preconditioner, x: Tensor) -> Tensor:
        """`C` on every head's rows of ``x``; shape and layout stay.

        Raises:
            ValueError: ``x`` does not hold heads of these numbers.
        """
        if self.form == "split":
            return preconditioner(self._checked(x, x))
        if self.form == "tokens":
            return preconditioner(self._checked(x.transpose(-3, -2), x)).transpose(-3, -2)
        if self.form == "channels":
            merged = x.flatten(2).transpose(1, 2)
            return self._on_merged(preconditioner, merged).transpose(1, 2).reshape(x.shape)
        # Rows that lie across memory, as cross-covariance attention leaves them, the next layer would copy.
        return self._on_merged(preconditioner, x.contiguous())

    def _on_merged(self, preconditioner: Preconditioner, x: Tensor) -> Tensor:
        if self.width is not None:
            own, other = x[..., : self.width], x[..., self.width :]
            return torch.cat([self._on_all(preconditioner, own), other], dim=-1)
        return self._on_all(preconditioner, x)

    def _on_all(self, preconditioner: Preconditioner, x: Tensor) -> Tensor:
        heads = x.unflatten(-1, self._sizes(x.shape[-1]))
        heads = heads.movedim(-1, -3) if self.interleaved else heads.transpose(-3, -2)
        heads = preconditioner(heads)
        return (heads.movedim(-3, -1) if self.interleaved else heads.transpose(-3, -2)).flatten(-2)

    def _sizes(self, merged: int) -> tuple[int, int]:
        """The two axes that ``merged`` entries are split into."""
        if is_symbolic(merged):
            count, width = self.num_heads or -1, self.head_dim or -1
            return (width, count) if self.interleaved else (count, width)
        count = self.num_heads or merged // (self.head_dim or 1)
        width = self.head_dim or merged // count
        if count * width != merged:
            raise ValueError(
                f"{merged} merged entries are not heads of these numbers: num_heads={self.num_heads}, "
                f"head_dim={self.head_dim}; give the right ones, or width where other entries follow attention's"
            )
        return (width, count) if self.interleaved else (count, width)

    def _checked(self, heads: Tensor, x: Tensor) -> Tensor:
        """``heads``, if their number is the one that was told."""
        if self.num_heads is not None and not is_symbolic(heads) and heads.shape[-3] != self.num_heads:
            raise ValueError(
                f"form={self.form!r} finds {heads.shape[-3]} heads in a tensor of shape {tuple(x.shape)}, and "
                f"num_heads={self.num_heads}; 'split' is (..., H, N, d), 'tokens' is (..., N, H, d)"
            )
        return heads


class RowHook(Unpickled):
    """A forward pre-hook for the first module that sees the heads' outputs, as its first argument.

    A class, not a closure, so that a converted model can be pickled and copied: the copy's hook holds the copy's
    preconditioner.
    """

    def __init__(self, preconditioner: Preconditioner, layout: Layout) -> None:
        self.preconditioner = preconditioner
        self.layout = layout

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Precondition the first argument."""
        if not torch.compiler.is_dynamo_compiling():  # torch 2.11 cannot trace it
            trace_into(module, False)
        if not args:
            raise TypeError(
                f"the heads' outputs are to be the first argument of this {type(module).__name__}, and it was called "
                "without positional arguments; attach elsewhere, or register a ClassSwap"
            )
        first, *rest = args
        return self.layout.apply(self.preconditioner, first), *rest


# What computes the same in training and evaluation, so that a graph may hold its operations in the place of a call.
_SAME_IN_TRAINING = (nn.Linear, nn.modules.conv._ConvNd, nn.LayerNorm, nn.Identity)


class AttachmentGuard:
    """A forward pre-hook on the attention itself: raises where a hook of ours is no longer at its place.

    Tools that put a layer round a projection (LoRA), or a new one in its place (merging LoRA, quantisation), leave our
    hook behind, and nothing of ours would run to notice.
    """

    def __init__(self, targets: tuple[str, ...]) -> None:
        self.targets = targets

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Check every hook target; compiled code was checked when it was traced."""
        compiling = torch.compiler.is_compiling()
        for target in self.targets:
            child = module.get_submodule(target)
            if not compiling:
                trace_into(child, is_symbolic(*args) and isinstance(child, _SAME_IN_TRAINING))
            if not any(isinstance(hook, RowHook) for hook in child._forward_pre_hooks.values()):
                _refuse(
                    f"the preconditioner of this {type(module).__name__} is no longer attached: its {target!r} has "
                    "been replaced since the conversion, by LoRA or its merging, by quantisation or the like. Call "
                    "restore_(model), and precondition_(model) after that step"
                )


def _refuse(message: str) -> None:
    if torch.compiler.is_dynamo_compiling():
        raise_while_tracing(message)
    raise RuntimeError(message)


class OutputHook(Unpickled):
    """A forward hook for a module that returns the heads' outputs, alone or first in a tuple."""

    def __init__(self, preconditioner: Preconditioner, layout: Layout) -> None:
        self.preconditioner = preconditioner
        self.layout = layout

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Precondition what comes out."""
        if _is_tensor(output):
            return self.layout.apply(self.preconditioner, output)
        if not (isinstance(output, tuple | list) and output and _is_tensor(output[0])):
            raise TypeError(
                f"this {type(module).__name__} is to return the heads' outputs, alone or first in a tuple, and it "
                f"returned {type(output).__name__}; attach elsewhere, or register a ClassSwap"
            )
        all_of_it = [self.layout.apply(self.preconditioner, output[0]), *output[1:]]
        return output._make(all_of_it) if hasattr(output, "_make") else type(output)(all_of_it)


def _is_tensor(x: object) -> bool:
    """Whether ``x`` is a tensor, or stands for one in a graph that is being traced."""
    return isinstance(x, Tensor) or is_symbolic(x)


class PreHook(Adapter):
    """A :class:`RowHook` on the child named ``hook_target``, the first module that sees the heads' outputs.

    Where the heads' place or the child depends on the module, override :meth:`layout` or :meth:`hook_targets`.

    Example:
        >>> import torch
        >>> import preconditioned_attention as pa
        >>> from preconditioned_attention.conversion import HeadShape, Layout, PreHook
        >>> class Merge(torch.nn.Module):
        ...     def __init__(self, heads_last):
        ...         super().__init__()
        ...         self.heads_last, self.out = heads_last, torch.nn.Flatten(2)
        ...
        ...     def forward(self, rows):
        ...         return self.out(rows if self.heads_last else rows.transpose(1, 2))
        >>> @pa.register_adapter(Merge)
        ... class MergeAdapter(PreHook):
        ...     hook_target = "out"
        ...
        ...     def shape(self, module):
        ...         return HeadShape(num_heads=2, head_dim=4)
        ...
        ...     def layout(self, module):
        ...         return Layout(4, "tokens")
        >>> model = Merge(heads_last=True)
        >>> report = pa.precondition_(model)
        >>> print(model(torch.ones(1, 1, 2, 4)))
        tensor([[[0.5000, 0.5000, 0.5000, 0.5000, 0.5000, 0.5000, 0.5000, 0.5000]]])
    """

    mechanism = "pre-hook"
    hook_target: ClassVar[str]

    def layout(self, module: nn.Module) -> Layout:
        """Where the heads lie; merged head by head along the last axis unless a subclass says otherwise."""
        shape = self.shape(module)
        return Layout(shape.head_dim, num_heads=shape.num_heads if shape.head_dim is None else None)

    def hook_targets(self, module: nn.Module) -> tuple[str, ...]:
        """The children to hook; several where several streams leave one attention."""
        return (self.hook_target,)

    def attach(self, module: nn.Module, preconditioner: Preconditioner) -> None:
        """Hook the targets, and check at every call that the hooks are still there."""
        for target in self.hook_targets(module):
            hook = RowHook(preconditioner, self.layout(module))
            module.get_submodule(target).register_forward_pre_hook(hook)
        module.register_forward_pre_hook(AttachmentGuard(self.hook_targets(module)))

    def detach(self, module: nn.Module) -> None:
        """Find the hooks by their type (a copied model has no handles), wherever a tool has taken them."""
        for child in module.modules():
            for key, hook in list(child._forward_pre_hooks.items()):
                own = isinstance(hook, RowHook) and hook.preconditioner is module.preconditioner
                if own or (child is module and isinstance(hook, AttachmentGuard)):
                    del child._forward_pre_hooks[key]


class PostHook(PreHook):
    """An :class:`OutputHook` on the module itself, which returns the heads' outputs.

    Example:
        >>> import torch
        >>> import preconditioned_attention as pa
        >>> from preconditioned_attention.conversion import HeadShape, PostHook
        >>> class Merged(torch.nn.Module):
        ...     def forward(self, rows):
        ...         return rows.transpose(1, 2).flatten(2)
        >>> @pa.register_adapter(Merged)
        ... class MergedAdapter(PostHook):
        ...     def shape(self, module):
        ...         return HeadShape(num_heads=2, head_dim=4)
        >>> model = Merged()
        >>> report = pa.precondition_(model)
        >>> print(model(torch.ones(1, 2, 1, 4)))
        tensor([[[0.5000, 0.5000, 0.5000, 0.5000, 0.5000, 0.5000, 0.5000, 0.5000]]])
    """

    mechanism = "forward hook"

    def attach(self, module: nn.Module, preconditioner: Preconditioner) -> None:
        """Hook the module."""
        module.register_forward_hook(OutputHook(preconditioner, self.layout(module)))

    def detach(self, module: nn.Module) -> None:
        """Find the hook by its type and remove it."""
        hooks = module._forward_hooks
        for key in [key for key, hook in hooks.items() if isinstance(hook, OutputHook)]:
            del hooks[key]
