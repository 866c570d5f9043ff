"""Observers of a preconditioner: what they are shown, and how they are attached."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class AttentionArguments:
    """What `Preconditioner.attend` was called with: the arguments of `scaled_dot_product_attention`."""

    q: Tensor
    k: Tensor
    v: Tensor
    attn_mask: Tensor | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False

    def attend(self) -> Tensor:
        """`A`, by `scaled_dot_product_attention`."""
        return F.scaled_dot_product_attention(
            self.q,
            self.k,
            self.v,
            self.attn_mask,
            self.dropout_p,
            is_causal=self.is_causal,
            scale=self.scale,
            enable_gqa=self.enable_gqa,
        )

    def compute_rows(self) -> Tensor:
        """`A`, without a gradient; the random state stays, so that the next computation has the same dropout mask."""
        devices = [self.q.device] if self.q.is_cuda else []
        with torch.no_grad(), torch.random.fork_rng(devices):
            return self.attend()


class Observer(Protocol):
    """What is shown every call of a preconditioner. It must not change what it is shown."""

    def before(self, arguments: AttentionArguments) -> None:
        """`C A` is about to be computed from queries, keys and values."""

    def after(self, rows: Tensor | None, out: Tensor) -> None:
        """`C A` is ``out``; ``rows`` is `A`, or None where it was computed from the arguments of :meth:`before`."""


class RowObserver:
    """An observer that calls ``see(A, C A)``; where `A` does not exist by itself it computes it once more."""

    def __init__(self, see: Callable[[Tensor, Tensor], object]) -> None:
        self._see = see
        self._computed: Tensor | None = None

    def before(self, arguments: AttentionArguments) -> None:
        """Compute `A`."""
        self._computed = arguments.compute_rows()

    def after(self, rows: Tensor | None, out: Tensor) -> None:
        """Show both."""
        before, self._computed = self._computed if rows is None else rows, None
        assert before is not None, "`attend` calls `before` first"
        self._see(before, out)


class OutputObserver:
    """An observer that calls ``see(C A)``."""

    def __init__(self, see: Callable[[Tensor], object]) -> None:
        self._see = see

    def before(self, arguments: AttentionArguments) -> None:
        """Nothing is needed of the arguments."""

    def after(self, rows: Tensor | None, out: Tensor) -> None:
        """Show the output."""
        self._see(out)


class Observable(Protocol):
    """A preconditioner, which shows every call to its observers."""

    observers: tuple[Observer, ...]


@contextmanager
def observed(preconditioner: Observable, observer: Observer) -> Iterator[None]:
    """Attach ``observer`` while the context lasts."""
    attach_observer(preconditioner, observer)
    try:
        yield
    finally:
        detach_observer(preconditioner, observer)


def attach_observer(preconditioner: Observable, observer: Observer) -> None:
    """Show ``observer`` every call from now on."""
    preconditioner.observers = (*preconditioner.observers, observer)


def detach_observer(preconditioner: Observable, observer: Observer) -> None:
    """Undo :func:`attach_observer`."""
    preconditioner.observers = tuple(other for other in preconditioner.observers if other is not observer)
