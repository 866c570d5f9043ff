"""Both sides of an inequality between condition numbers, and whether it was entitled to hold."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..results import Conditioning


@dataclass(frozen=True, kw_only=True)
class Assumption:
    """What an inequality takes for granted, in words, and where it is met: a bool tensor ``(...)``."""

    words: str
    met: Tensor


@dataclass(frozen=True, kw_only=True)
class Inequality:
    """``left <= right`` for a batch of matrices: both sides, ``(...)``, and the assumptions.

    Attributes:
        statement: the inequality.
        source: where it comes from.
        left, right: both sides, in float64; NaN where a condition number in it is beyond what the dtype can tell.
        holds: False where the sides contradict the inequality whatever the rounding errors: the least that the left
            side can be exceeds the most that the right side can be. A right side without a number contradicts nothing.
        assumptions: where all are met, the inequality is a theorem.
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
    """That a matrix has full rank, as far as its dtype can tell."""
    return Assumption(words=f"{what} has full rank, as far as its dtype can tell", met=conditioning.defined)
