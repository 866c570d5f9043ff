"""The learning-rate schedule of Nystromformer's runs on the Long Range Arena."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from .optimizer import OptimizerSettings, check_left_out

ALMOST_ONE = 1 - 1e-12


def make_one_cycle(optimizer: Optimizer, settings: OptimizerSettings) -> OneCycleLR:
    """One cycle with torch's defaults (L. Smith and N. Topin, Super-Convergence, 2017), in straight lines.

    The learning rate rises from a 25th of its peak and falls to a 250,000th of it; the optimizer's first beta, whatever
    the configuration says, runs the other way, from 0.95 to 0.85 and back.

    Raises:
        ValueError: the run sets a final learning rate or milestones.
    """
    check_left_out(settings, "final_learning_rate", "milestones")
    steps = max(2, settings.steps)
    # OneCycleLR divides by warmup_steps - 1; without a warm-up the first step has the peak.
    warmup = settings.warmup_steps if settings.warmup_steps > 1 else ALMOST_ONE
    return OneCycleLR(
        optimizer, max_lr=settings.learning_rate, total_steps=steps, pct_start=warmup / steps, anneal_strategy="linear"
    )
