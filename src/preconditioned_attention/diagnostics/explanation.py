"""A sentence on why C changed the condition number of a head, or did not."""

from __future__ import annotations

import math

CHANGED = 1.1  # a factor nearer to 1 than this is not called a change
UNEVEN = 0.1  # a spread of row norms below this is called small
_PARALLEL = 0.95


def explain(*, kappa_before: float, kappa_after: float, spread: float, mean_direction_share: float) -> str:
    """How C changed one head's condition number, and which property of its rows explains it.

    C changes row norms only. It can help only where they differ (``spread``), and only where that difference makes
    the matrix ill-conditioned. Nearly parallel rows stay so; how parallel they are is the length of the mean
    row over the mean length of the rows, which is `sqrt(mean_direction_share (1 + spread^2))`.

    Args:
        kappa_before: `kappa(A)`; NaN where `A` is numerically singular.
        kappa_after: `kappa(C A)`, likewise.
        spread: :func:`row_norm_spread` of `A`.
        mean_direction_share: of `A`, by the function of that name.

    Raises:
        ValueError: a condition number that is infinite or below 1, a spread that is negative or not finite, a share
            outside [0, 1].
    """
    _check(kappa_before, kappa_after, spread, mean_direction_share)
    causes = _causes(spread, mean_direction_share)
    if math.isnan(kappa_before) or math.isnan(kappa_after):
        return f"{_singular(kappa_before, kappa_after)} {causes}"
    factor = kappa_before / kappa_after
    numbers = f"from {kappa_before:.3g} to {kappa_after:.3g}"
    if factor >= CHANGED:
        return f"C divides kappa by {factor:.3g}, {numbers}: it evens out row norms that differ by {spread:.0%}."
    if factor <= 1 / CHANGED:
        return (
            f"C multiplies kappa by {1 / factor:.3g}, {numbers}: short rows become as long as the others, and here "
            "that costs more than it gains."
        )
    return f"C leaves kappa about as it was, {numbers}. {causes}"


def _causes(spread: float, share: float) -> str:
    if spread < UNEVEN:
        norms = f"Row norms differ by {spread:.1%} only, which leaves a row scaling little to act on."
    else:
        norms = f"Row norms differ by {spread:.0%}, but that is not what makes this head ill-conditioned."
    parallel = math.sqrt(share * (1 + spread**2))
    if parallel < _PARALLEL:
        return norms
    return (
        f"{norms} The rows are nearly parallel (the mean row is {parallel:.1%} as long as the rows are), and no row "
        "scaling changes that."
    )


def _singular(before: float, after: float) -> str:
    precision = "singular to the precision that A was computed in"
    if math.isnan(before) and math.isnan(after):
        return f"A and C A are both {precision}: their condition numbers cannot be told."
    if math.isnan(before):
        return f"A is {precision}; kappa of C A is {after:.3g}."
    return f"kappa of A is {before:.3g}; C A is {precision}."


def _check(before: float, after: float, spread: float, share: float) -> None:
    for name, kappa in (("kappa_before", before), ("kappa_after", after)):
        if kappa < 1 or math.isinf(kappa):
            raise ValueError(f"{name} must be finite and at least 1, or NaN for a singular matrix; got {kappa}")
    if not 0 <= spread < math.inf:
        raise ValueError(f"spread must be finite and not negative; got {spread}")
    if not 0 <= share <= 1 + 1e-9:  # rounding
        raise ValueError(f"mean_direction_share must be between 0 and 1; got {share}")
