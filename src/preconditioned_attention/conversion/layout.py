"""`Layout`: where the heads' outputs are in the tensor that a hook is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from .._symbolic import is_symbolic

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

    def of_some_heads(self) -> Layout:
        """This layout, for a tensor that holds some of the heads, as in tensor parallelism.

        Raises:
            ValueError: without ``head_dim`` it is unknown how many.
        """
        if self.head_dim is None and self.form in ("merged", "channels"):
            raise ValueError(
                "head_dim must be given where tensor parallelism shares out the heads: num_heads alone does not say "
                f"how wide the heads are that a process has; got {self}"
            )
        return replace(self, num_heads=None)

    def apply(self, preconditioner: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
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

    def _on_merged(self, preconditioner: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if self.width is not None:
            own, other = x[..., : self.width], x[..., self.width :]
            return torch.cat([self._on_all(preconditioner, own), other], dim=-1)
        return self._on_all(preconditioner, x)

    def _on_all(self, preconditioner: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
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
