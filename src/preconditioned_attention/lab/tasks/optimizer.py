"""The default optimizer and learning-rate schedule of a task: AdamW, warm-up and a cosine."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

DEFAULT_EPS = 1e-8  # torch's


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """What a run's configuration says about its optimizer and its learning rate; see ``TrainConfig``."""

    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    betas: tuple[float, float]
    eps: float | None = None
    warmup_steps: int = 0
    final_learning_rate: float = 0.0
    milestones: tuple[int, ...] = ()


def make_adamw(model: nn.Module, settings: OptimizerSettings, *, decay_vectors: bool) -> AdamW:
    """AdamW (Loshchilov and Hutter, ICLR 2019) of the parameters that require gradients.

    Args:
        model: whose parameters.
        settings: the run's; ``eps`` None is torch's 1e-8.
        decay_vectors: whether parameters with fewer than two axes decay too.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decaying = [p for p in parameters if decay_vectors or p.ndim >= 2]
    constant = [p for p in parameters if not (decay_vectors or p.ndim >= 2)]
    groups = [
        {"params": decaying, "weight_decay": settings.weight_decay},
        {"params": constant, "weight_decay": 0.0},
    ]
    return AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=DEFAULT_EPS if settings.eps is None else settings.eps,
    )


def make_cosine(optimizer: Optimizer, settings: OptimizerSettings) -> LambdaLR:
    """Linear warm-up, then a cosine to ``final_learning_rate``, or a tenth at each of ``milestones``.

    Not ``SequentialLR`` of ``LinearLR`` and ``CosineAnnealingLR``: these multiply the last learning rate, so that
    rounding errors add up and a resumed run depends on them; here it is a function of the step.
    """
    final = settings.final_learning_rate / settings.learning_rate

    def factor(step: int) -> float:
        if step < settings.warmup_steps:
            return (step + 1) / settings.warmup_steps
        if settings.milestones:
            return max(final, 0.1 ** sum(step >= milestone for milestone in settings.milestones))
        progress = min(1.0, (step - settings.warmup_steps) / (settings.steps - settings.warmup_steps))
        return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2

    return LambdaLR(optimizer, factor)


def check_left_out(settings: OptimizerSettings, *names: str) -> None:
    """Raise ``ValueError`` if one of these settings, which a task's own schedule has no use for, is set."""
    given = [f"{name}={getattr(settings, name)!r}" for name in names if getattr(settings, name)]
    if given:
        raise ValueError(f"this task has a learning-rate schedule of its own; leave out {', '.join(given)}")
