"""timm's optimizers and learning-rate schedules by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..._checks import check_known
from ..._extras import require
from .optimizer import OptimizerSettings, check_left_out

# Set by the run's configuration, or for schedules that depend on metrics.
_DECIDED = {
    *("optimizer", "num_epochs", "min_lr", "warmup_epochs", "updates_per_epoch", "cooldown_epochs"),
    *("plateau_mode", "patience_epochs"),
}


def check_optimizer(name: str) -> None:
    """Raise ``ValueError`` unless timm has an optimizer of this name."""
    check_known("optimizer of timm:", [name], require("timm.optim", extra="vision").list_optimizers())


def check_schedule(options: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` unless these are options of timm's ``create_scheduler_v2`` that a run leaves open."""
    scheduler = require("timm.scheduler", extra="vision")
    known = [name for name in inspect.signature(scheduler.create_scheduler_v2).parameters if name not in _DECIDED]
    check_known("option in schedule:", options, known)
    if options.get("sched") in ("plateau", "none"):
        raise ValueError(f"schedule: sched must be a function of the step; got {options['sched']!r}")
    optimizer = SGD([torch.zeros(1)], lr=1.0)
    try:
        made, _ = scheduler.create_scheduler_v2(optimizer, num_epochs=2, updates_per_epoch=1, **options)
        if made is None:
            raise ValueError("timm knows no such sched")
        made.step(1)
    except Exception as error:  # timm checks none of these values
        raise ValueError(f"timm makes no schedule of {dict(options)!r}: {type(error).__name__}: {error}") from error


def create_optimizer(name: str, model: nn.Module, settings: OptimizerSettings) -> Optimizer:
    """timm's optimizer, with no weight decay on vectors and on what the model's ``no_weight_decay`` names.

    Raises:
        ValueError: the run sets ``eps``, and this optimizer has none.
    """
    optim = require("timm.optim", extra="vision")
    info = optim.get_optimizer_info(name)
    if settings.eps is not None and not info.has_eps:
        raise ValueError(f"eps must be left out: timm's optimizer {name!r} has none; got {settings.eps!r}")
    options: dict[str, Any] = {"betas": settings.betas} if info.has_betas else {}
    if settings.eps is not None:
        options["eps"] = settings.eps
    return optim.create_optimizer_v2(
        model, opt=name, lr=settings.learning_rate, weight_decay=settings.weight_decay, **options
    )


def create_scheduler(
    options: Mapping[str, Any], optimizer: Optimizer, settings: OptimizerSettings, *, steps_per_epoch: int
) -> LambdaLR:
    """timm's schedule, which takes epochs or steps, as a scheduler that is stepped once per optimizer step.

    Args:
        options: of ``create_scheduler_v2``. With ``step_on_epochs``, timm's default, the rate changes once an epoch.
        optimizer: whose learning rate.
        settings: the run's.
        steps_per_epoch: optimizer steps in one epoch.

    Raises:
        ValueError: the run sets milestones.
    """
    check_left_out(settings, "milestones")
    per_epoch = options.get("step_on_epochs", True)
    unit = steps_per_epoch if per_epoch else 1
    warmup = round(settings.warmup_steps / unit)
    total = -(-settings.steps // unit)
    scheduler, _ = require("timm.scheduler", extra="vision").create_scheduler_v2(
        optimizer,
        num_epochs=total - warmup if options.get("warmup_prefix", False) else total,
        warmup_epochs=warmup,
        min_lr=settings.final_learning_rate,
        updates_per_epoch=1,
        **options,
    )

    def factor(step: int) -> float:
        if per_epoch:
            scheduler.step(step // unit)
        else:
            scheduler.step_update(step)
        return optimizer.param_groups[0]["lr"] / settings.learning_rate

    return LambdaLR(optimizer, factor)
