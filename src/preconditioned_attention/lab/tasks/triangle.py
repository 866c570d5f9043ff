"""A learning rate that rises and falls in straight lines."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from .optimizer import OptimizerSettings, check_left_out


def make_triangle(optimizer: Optimizer, settings: OptimizerSettings, *, start: float, peak: float) -> LambdaLR:
    """From ``start`` times the learning rate up to the whole, then down to 0 after the last step.

    Args:
        optimizer: whose learning rate.
        settings: of the run; only its steps count.
        start: the factor of the first step.
        peak: where the factor is 1, as a share of the steps.

    Raises:
        ValueError: the run sets a warm-up, a floor or milestones.
    """
    check_left_out(settings, "warmup_steps", "final_learning_rate", "milestones")
    top = peak * settings.steps

    def factor(step: int) -> float:
        if step < top:
            return start + (1 - start) * step / top
        return max(0.0, (settings.steps - step) / (settings.steps - top))

    return LambdaLR(optimizer, factor)
