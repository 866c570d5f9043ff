"""An inequality between condition numbers: both sides, and where its assumptions are met."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..results import Conditioning


@dataclass(frozen=True, kw_only=True)
class Assumption:
    """An assumption in words, and where it is met: a bool tensor ``(...)``."""

    words: str
    met: Tensor


@dataclass(frozen=True, kw_only=True)
class Inequality:
    """``left <= right`` for a batch of matrices: both sides, ``(...)``, and the assumptions.

    Attributes:
        statement: the inequality.
        source: where it comes from.
        left, right: both sides, in float64; NaN where a condition number in it is beyond what the dtype resolves.
        holds: False where the sides contradict the inequality whatever the rounding errors: the least that the left
            side can be exceeds the most that the right side can be. An undefined right side contradicts nothing.
        assumptions: where all are met, the inequality is proved.
    """

    statement: str
    source: str
    left: Tensor
    right: Tensor
    holds: Tensor
    assumptions: tuple[Assumption, ...]

    @property
    def applies(self) -> Tensor:
        """Where all assumptions are met: a bool tensor ``(...)``."""
        met = self.assumptions[0].met
        for assumption in self.assumptions[1:]:
            met = met & assumption.met
        return met

    def explain(self) -> str:
        """The outcome in words: how many matrices, where assumptions fail, where the inequality fails."""
        count = self.left.numel()
        lines = [f"{self.statement}: holds for {int(self.holds.sum())} of {count}."]
        for assumption in self.assumptions:
            failed = count - int(assumption.met.sum())
            if failed:
                lines.append(f"Not met by {failed} of {count}, so that it need not hold there: {assumption.words}.")
        contradicted = int((self.applies & ~self.holds).sum())
        if contradicted:
            lines.append(f"Contradicted by {contradicted} of {count} that meet every assumption: please report this.")
        return " ".join(lines)


def full_rank(conditioning: Conditioning, what: str) -> Assumption:
    """That a matrix has full rank, as far as its dtype resolves."""
    return Assumption(words=f"{what} has full rank, as far as its dtype resolves", met=conditioning.defined)
