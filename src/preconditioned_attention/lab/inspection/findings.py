"""The findings of an inspection in sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...diagnostics import explain
from ...diagnostics.explanation import CHANGED, UNEVEN
from ...diagnostics.medians import median
from .measurement import Head, Inspection

SHOWN = 5


def ranked(heads: Sequence[Head]) -> list[Head]:
    """The heads with a known factor, largest first."""
    return sorted((head for head in heads if not math.isnan(head.factor)), key=lambda head: -head.factor)


def helped(heads: Sequence[Head]) -> list[Head]:
    """The heads whose kappa `C` divides by at least :data:`CHANGED`, largest factor first."""
    return [head for head in ranked(heads) if head.factor >= CHANGED]


def summary(inspection: Inspection) -> tuple[str, ...]:
    """How many heads `C` improves, worsens and leaves unchanged, the median kappa, and a conclusion."""
    heads = inspection.heads
    order, singular = ranked(heads), len(heads) - len(ranked(heads))
    better, worse = helped(heads), [head for head in order if head.factor <= 1 / CHANGED]
    sentences = []
    if order:
        before, after = (median(getattr(h, name) for h in order) for name in ("kappa_before", "kappa_after"))
        sentences.append(
            f"Of {len(order)} heads, C divides the condition number by {CHANGED:g} or more in {len(better)}, "
            f"multiplies it by as much in {len(worse)}, and changes it less in "
            f"{len(order) - len(better) - len(worse)}. The median is {before:.4g} before and {after:.4g} after C."
        )
    if singular:
        sentences.append(
            f"{singular} of {len(heads)} heads are numerically singular in {inspection.precision}, or not finite: "
            "their condition numbers are unknown."
        )
    sentences.append(_conclusion(median(head.spread for head in heads), bool(better)))
    return tuple(sentences)


def _conclusion(spread: float, helps: bool) -> str:
    if helps:
        return (
            f"The median spread of row norms is {spread:.1%}. A lower condition number does not imply a better model: "
            "train with and without C to compare (precond compare)."
        )
    if spread < UNEVEN:
        reason = f"row norms hardly differ (their median spread is {spread:.1%}), and C changes nothing but row norms"
    else:
        reason = f"row norms differ (their median spread is {spread:.1%}), but making them equal does not lower kappa"
    return (
        f"C improves no head: {reason}. Converting this model would change its outputs without improving the "
        "conditioning of its heads."
    )


def explanation(head: Head) -> str:
    """Why `C` changes the kappa of this head, or does not."""
    if not math.isfinite(head.spread):
        return "The rows are not finite."
    return explain(
        kappa_before=head.kappa_before,
        kappa_after=head.kappa_after,
        spread=head.spread,
        mean_direction_share=head.common_direction if math.isfinite(head.common_direction) else 0.0,
    )


def most_and_least(inspection: Inspection) -> tuple[list[Head], list[Head]]:
    """Up to five improved heads with the largest factors, and up to five others with the smallest."""
    most = helped(inspection.heads)[:SHOWN]
    least = [head for head in reversed(ranked(inspection.heads)) if head not in most][:SHOWN]
    return most, least
