"""What the numbers say, in sentences that a reader can act on."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...diagnostics import explain
from ...diagnostics.explanation import CHANGED, UNEVEN
from ...diagnostics.medians import median
from .measurement import Head, Inspection

SHOWN = 5


def ranked(heads: Sequence[Head]) -> list[Head]:
    """The heads whose factor can be told, from the one where `C` helps most to the one where it helps least."""
    return sorted((head for head in heads if not math.isnan(head.factor)), key=lambda head: -head.factor)


def helped(heads: Sequence[Head]) -> list[Head]:
    """The heads whose kappa `C` divides by more than :data:`CHANGED`, most first."""
    return [head for head in ranked(heads) if head.factor >= CHANGED]


def summary(inspection: Inspection) -> tuple[str, ...]:
    """The findings: how many heads `C` helps, hurts and leaves, how large kappa is, and what that means."""
    heads = inspection.heads
    order, singular = ranked(heads), len(heads) - len(ranked(heads))
    better, worse = helped(heads), [head for head in order if head.factor <= 1 / CHANGED]
    sentences = []
    if order:
        before, after = (median(getattr(h, name) for h in order) for name in ("kappa_before", "kappa_after"))
        sentences.append(
            f"Of {len(order)} heads, C divides the condition number by {CHANGED:g} or more in {len(better)}, "
            f"multiplies it by as much in {len(worse)}, and leaves it about as it was in "
            f"{len(order) - len(better) - len(worse)}. The median is {before:.4g} before and {after:.4g} after C."
        )
    if singular:
        sentences.append(
            f"{singular} of {len(heads)} heads are numerically singular in {inspection.precision}, or not finite: "
            "their condition numbers cannot be told."
        )
    sentences.append(_conclusion(median(head.spread for head in heads), bool(better)))
    return tuple(sentences)


def _conclusion(spread: float, helps: bool) -> str:
    if helps:
        return (
            f"The median spread of row norms, which is what C has to act on, is {spread:.1%}. A lower condition number "
            "is not a better model: only training with and without C can show that (precond compare)."
        )
    if spread < UNEVEN:
        reason = f"row norms hardly differ (their median spread is {spread:.1%}), and C changes nothing but row norms"
    else:
        reason = f"row norms differ (their median spread is {spread:.1%}), but evening them out does not lower kappa"
    return (
        f"There is nothing here for C to improve: {reason}. Converting this model would change what it computes, and "
        "not how well conditioned its heads are."
    )


def explanation(head: Head) -> str:
    """Why `C` does to this head what it does."""
    if not math.isfinite(head.spread):
        return "The rows are not finite."
    return explain(
        kappa_before=head.kappa_before,
        kappa_after=head.kappa_after,
        spread=head.spread,
        mean_direction_share=head.common_direction if math.isfinite(head.common_direction) else 0.0,
    )


def most_and_least(inspection: Inspection) -> tuple[list[Head], list[Head]]:
    """Up to five heads where `C` helps most, if it helps any, and up to five others where it helps least."""
    most = helped(inspection.heads)[:SHOWN]
    least = [head for head in reversed(ranked(inspection.heads)) if head not in most][:SHOWN]
    return most, least
