"""The optimizer and schedule of Nystromformer's runs on the Long Range Arena: AdamW within one cycle.

The learning rate rises linearly from a 25th of its peak and falls linearly to a 250,000th of it; AdamW's first average
runs the other way, from 0.95 to 0.85 and back, whatever the configuration's first beta is. That is what the defaults of
:class:`torch.optim.lr_scheduler.OneCycleLR` do, which these runs used (L. Smith and N. Topin, Super-Convergence, 2017).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.optim import AdamW

from .protocol import OptimizationSettings

START = 1 / 25
END = START / 1e4
SLOW, FAST = 0.95, 0.85  # the first beta at the ends of the cycle, and at the peak of the learning rate
EPS = 1e-6


class OneCycleAdamW(AdamW):
    """AdamW whose first beta falls and rises again; what it is at a step is kept in the state dict.

    Args:
        parameters: what is trained.
        settings: the run's.
    """

    def __init__(self, parameters: Iterable[Tensor], settings: OptimizationSettings) -> None:
        self._first_beta = _cycle(settings, start=SLOW, peak=FAST, end=SLOW)
        super().__init__(
            parameters,
            lr=settings.learning_rate,
            betas=(SLOW, settings.betas[1]),
            eps=EPS,
            weight_decay=settings.weight_decay,
        )
        for group in self.param_groups:
            group["cycle_step"] = 0

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step with the beta of its place in the cycle."""
        for group in self.param_groups:
            group["betas"] = (self._first_beta(group["cycle_step"]), group["betas"][1])
            group["cycle_step"] += 1
        return super().step(closure)


def one_cycle(settings: OptimizationSettings) -> Callable[[int], float]:
    """From the step, counted from 0, to its learning rate over the peak.

    Raises:
        ValueError: the run sets a final learning rate, which the cycle decides.
    """
    if settings.final_learning_rate:
        raise ValueError(
            f"final_learning_rate: the cycle ends at learning_rate / 250,000; leave it out (got "
            f"{settings.final_learning_rate!r})"
        )
    return _cycle(settings, start=START, peak=1.0, end=END)


def _cycle(settings: OptimizationSettings, *, start: float, peak: float, end: float) -> Callable[[int], float]:
    top, last = max(0, settings.warmup_steps - 1), settings.steps - 1

    def value(step: int) -> float:
        if step < top:
            return start + (peak - start) * step / top
        if step >= last:  # the scheduler asks for the step after the last one
            return end if last > top else peak
        return peak + (end - peak) * (step - top) / (last - top)

    return value
