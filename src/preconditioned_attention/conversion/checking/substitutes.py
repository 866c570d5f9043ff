"""Classes that replace `Preconditioner` while an adapter is checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...layers import Preconditioner
from ...layers.observation import AttentionArguments


class PassThrough(Preconditioner):
    """The identity instead of `C`; it records the rows that it is given."""

    arrived: list[Tensor]
    attended: bool

    def forward(self, rows: Tensor) -> Tensor:
        """The rows."""
        self.arrived.append(rows.detach().clone())
        return rows

    def attend(self, *args: Any, **kwargs: Any) -> Tensor:
        """Plain attention."""
        self.attended = True
        return self(AttentionArguments(*args, **kwargs).attend())


class ScaledValues(Preconditioner):
    """Scales the values of every head before attention is computed."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Preconditioned attention of the scaled values."""
        return super().attend(q, k, v * powers_of_two((v.shape[-3], 1, 1), v), *args, **kwargs)


@contextmanager
def with_class(preconditioners: Mapping[str, Preconditioner], cls: type[Preconditioner]) -> Iterator[dict[str, Any]]:
    """Change the class of the preconditioners to ``cls`` while the context lasts."""
    own = {path: type(c) for path, c in preconditioners.items()}
    for c in preconditioners.values():
        c.__class__ = cls
        vars(c).update(arrived=[], attended=False)
    yield dict(preconditioners)
    for path, c in preconditioners.items():
        c.__class__ = own[path]


def powers_of_two(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """1, 2, 4 or 8, by which a product is exact in any dtype."""
    exponents = torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(1))
    return (2.0**exponents).to(like)
