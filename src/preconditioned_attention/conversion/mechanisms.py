"""The mechanisms that adapters share: class swap, forward pre-hook and forward hook. All act on instances."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from ..layers import Preconditioner
from .adapter import Adapter
from .layout import Layout
from .row_hooks import AttachmentGuard, OutputHook, RowHook


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
