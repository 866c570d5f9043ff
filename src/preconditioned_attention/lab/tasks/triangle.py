"""Learning rates that rise and fall in straight lines."""

from __future__ import annotations

from collections.abc import Callable

from .protocol import OptimizationSettings


def triangle(settings: OptimizationSettings, *, start: float, peak: float) -> Callable[[int], float]:
    """From the step, counted from 0, to a factor: from ``start`` up to 1, then down to 0 with the last step.

    Args:
        settings: of the run; only its steps count.
        start: the factor of the first step.
        peak: where the factor is 1, as a share of the steps.

    Raises:
        ValueError: the run asks for a warm-up or a floor, which this schedule does not have.
    """
    if settings.warmup_steps or settings.final_learning_rate:
        raise ValueError(
            "warmup_steps and final_learning_rate must be 0: this task has a schedule of its own; got "
            f"{settings.warmup_steps} and {settings.final_learning_rate:g}"
        )
    top = peak * settings.steps

    def factor(step: int) -> float:
        if step < top:
            return start + (1 - start) * step / top
        return max(0.0, (settings.steps - step) / (settings.steps - top))

    return factor
