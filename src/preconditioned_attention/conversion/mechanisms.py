"""The mechanisms that adapters share: class swap, forward pre-hook and forward hook. All act on instances."""

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
    """A short digest of a function's source text; None where the source is not available."""
    try:
        return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:16]
    except OSError:
        return None


class ClassSwap(Adapter):
    """The instance's class becomes ``replacement``, a subclass of its class with another forward.

    Only the exact class is swapped: the forward of a subclass may do more than that of the replacement.

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
        """Set the class of ``module`` to the replacement."""
        module.__class__ = self.replacement

    def detach(self, module: nn.Module) -> None:
        """Set it back."""
        module.__class__ = self.original


Form = Literal["merged", "channels", "split", "tokens"]


@dataclass(frozen=True)
class Layout:
    """The layout of the heads' outputs in the tensor that a hook is given.

    Args:
        head_dim: the width of one head's output; merged heads are split by it, or by ``num_heads``.
        form: ``"merged"``: ``(..., N, H d)``; ``"channels"``: ``(B, H d, ...)`` with the tokens last, as in images;
            ``"split"``: ``(..., H, N, d)``; ``"tokens"``: ``(..., N, H, d)``.
        interleaved: merged entry by entry, ``d`` before ``H``, where the usual order is head by head.
        width: only the first so many of the merged entries are attention's; None: all of them.
        num_heads: how many heads there are, which is checked; None: any number.

    Raises:
        ValueError: there is no such form, other arguments do not fit it, or a number is not positive.

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
            raise ValueError(f"interleaved and width concern merged heads; form={self.form!r} has them separate")
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
        # The next layer would copy rows that are not contiguous, as those of cross-covariance attention.
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
        """``heads``, if their number is ``num_heads``."""
        if self.num_heads is not None and not is_symbolic(heads) and heads.shape[-3] != self.num_heads:
            raise ValueError(
                f"form={self.form!r} finds {heads.shape[-3]} heads in a tensor of shape {tuple(x.shape)}, and "
                f"num_heads={self.num_heads}; 'split' is (..., H, N, d), 'tokens' is (..., N, H, d)"
            )
        return heads


class RowHook(Unpickled):
    """A forward pre-hook for the first module that is called with the heads' outputs, as its first argument.

    It is a class and not a closure so that converted models can be pickled and copied: the hook of a copy has the
    preconditioner of the copy.
    """

    def __init__(self, preconditioner: Preconditioner, layout: Layout) -> None:
        self.preconditioner = preconditioner
        self.layout = layout

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Scale the rows of the first argument."""
        if not torch.compiler.is_dynamo_compiling():  # torch 2.11 cannot trace it
            trace_into(module, False)
        if not args:
            raise TypeError(
                f"the heads' outputs are to be the first argument of this {type(module).__name__}, and it was called "
                "without positional arguments; attach elsewhere, or register a ClassSwap"
            )
        first, *rest = args
        return self.layout.apply(self.preconditioner, first), *rest


# These compute the same in training and evaluation, so torch.fx may trace into them.
_SAME_IN_TRAINING = (nn.Linear, nn.modules.conv._ConvNd, nn.LayerNorm, nn.Identity)


class AttachmentGuard:
    """A forward pre-hook on the attention that raises if a hook target has lost its hook.

    Tools that wrap a projection (LoRA) or replace it (merging LoRA, quantization) do not move hooks.
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
                    "been replaced since the conversion, by LoRA or its merging, by quantization or the like. Call "
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
        """Scale the rows of the output."""
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
    """Whether ``x`` is a tensor, or the proxy of one while torch.fx traces."""
    return isinstance(x, Tensor) or is_symbolic(x)


class PreHook(Adapter):
    """A :class:`RowHook` on the child ``hook_target``, the first module that is called with the heads' outputs.

    Where the layout or the child depends on the module, override :meth:`layout` or :meth:`hook_targets`.

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
        """The layout of the heads; by default merged head by head along the last axis."""
        shape = self.shape(module)
        return Layout(shape.head_dim, num_heads=shape.num_heads if shape.head_dim is None else None)

    def hook_targets(self, module: nn.Module) -> tuple[str, ...]:
        """The children to hook; several where one attention has several outputs."""
        return (self.hook_target,)

    def attach(self, module: nn.Module, preconditioner: Preconditioner) -> None:
        """Hook the targets, and check at every call that the hooks are still there."""
        for target in self.hook_targets(module):
            hook = RowHook(preconditioner, self.layout(module))
            module.get_submodule(target).register_forward_pre_hook(hook)
        module.register_forward_pre_hook(AttachmentGuard(self.hook_targets(module)))

    def detach(self, module: nn.Module) -> None:
        """Remove the hooks, which are found by their type: a copied model has no handles, and tools move modules."""
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
        """Remove the hook, which is found by its type."""
        hooks = module._forward_hooks
        for key in [key for key, hook in hooks.items() if isinstance(hook, OutputHook)]:
            del hooks[key]
