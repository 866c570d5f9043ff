"""Checks on a real input that every preconditioner is called and returns unit rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..equilibration import default_eps, row_norms
from ..layers import Preconditioner
from ..layers.observation import OutputObserver, observed


class VerificationError(RuntimeError):
    """A preconditioner was not called, or returned rows that are neither unit rows nor zero rows."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What one preconditioner did while the model ran.

    Args:
        path: the attention module.
        calls: how often it was called.
        rows: how many rows it returned.
        zero_rows: how many of them were left as they were, their norm being at most eps.
        largest_error: the largest `| ||row|| / |gain| - 1 |` of the others.
        allowed: how large that may be by rounding.
    """

    path: str
    calls: int
    rows: int
    zero_rows: int
    largest_error: float
    allowed: float

    @property
    def passed(self) -> bool:
        """Whether it was called and its rows are unit rows."""
        return self.calls > 0 and self.largest_error <= self.allowed


class _Tally:
    def __init__(self) -> None:
        self.calls = self.rows = self.zero_rows = 0
        self.largest_error = 0.0
        self.allowed = 0.0

    def add(self, out: Tensor, preconditioner: Preconditioner) -> None:
        self.calls += 1
        x, gain = (_values(out), None) if out.is_nested else (out, preconditioner.gain)
        norms = row_norms(x.detach())
        if gain is not None:  # the values of a nested tensor have no head axis
            norms = norms / gain.detach().abs().to(norms.dtype).view(-1, 1)
        eps = default_eps(x.dtype) if preconditioner.config.eps is None else preconditioner.config.eps
        zero = norms <= eps
        errors = torch.where(zero, 0.0, (norms - 1).abs()).nan_to_num(nan=torch.inf)
        self.rows += norms.numel()
        self.zero_rows += int(zero.sum())
        self.largest_error = max(self.largest_error, errors.max().item() if errors.numel() else 0.0)
        # Every entry is rounded once, which changes the norm by at most one eps; the norm itself is rounded too.
        self.allowed = 4 * torch.finfo(x.dtype).eps


def _values(nested: Tensor) -> Tensor:
    """The rows of a nested tensor, one after the other."""
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in nested.unbind()])


def verify(
    modules: Mapping[str, nn.Module], run: Callable[..., object], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Verification, ...]:
    """Run ``run(*args, **kwargs)`` without gradients and check every row that a preconditioner returns.

    Args:
        modules: path to converted attention module.
        run: the model, or what calls it.
        args, kwargs: what it is called with.

    Raises:
        VerificationError: a preconditioner was not called or returned other rows; the message lists which.
    """
    tallies = {path: _Tally() for path in modules}
    with torch.no_grad(), _watching(modules, tallies):
        run(*args, **kwargs)
    results = tuple(Verification(path=path, **vars(tally)) for path, tally in tallies.items())
    failed = [result for result in results if not result.passed]
    if failed:
        raise VerificationError(_message(failed, len(results)))
    return results


@contextmanager
def _watching(modules: Mapping[str, nn.Module], tallies: Mapping[str, _Tally]) -> Iterator[None]:
    with ExitStack() as stack:
        for path, module in modules.items():
            preconditioner = module.get_submodule("preconditioner")
            assert isinstance(preconditioner, Preconditioner)
            add = partial(tallies[path].add, preconditioner=preconditioner)
            stack.enter_context(observed(preconditioner, OutputObserver(add)))
        yield


def _message(failed: list[Verification], total: int) -> str:
    lines = [f"{len(failed)} of {total} attachments failed:"]
    for result in failed:
        if result.calls == 0:
            lines.append(
                f"  {result.path}: did not fire. This input does not reach it, or it is bypassed by code that was "
                "compiled before the conversion or by a fast path"
            )
        else:
            lines.append(
                f"  {result.path}: a row's norm is off by {result.largest_error:.2g}, and rounding explains "
                f"{result.allowed:.2g}"
            )
    return "\n".join(lines)
