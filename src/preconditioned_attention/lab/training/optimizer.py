"""The optimizer and its learning rate: AdamW and a cosine, or what a task brings."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..tasks import OptimizationSettings, Optimized, Task
from .config import TrainConfig


def make_optimization(model: nn.Module, task: Task, config: TrainConfig) -> tuple[Optimizer, LambdaLR]:
    """The task's own optimizer and schedule, if it is :class:`Optimized`, or those below.

    Raises:
        ValueError: ``config`` has milestones for a schedule that the task decides.
    """
    if not isinstance(task, Optimized):
        optimizer = make_optimizer(model, config)
        return optimizer, make_scheduler(optimizer, config)
    if config.milestones:
        raise ValueError(f"task {task.name!r} has a schedule of its own, which milestones do not reach; leave them out")
    fields = dataclasses.fields(OptimizationSettings)
    settings = OptimizationSettings(**{field.name: getattr(config, field.name) for field in fields})
    own = task.make_optimizer(model, settings)
    return own, LambdaLR(own, task.make_schedule(settings))


def make_optimizer(model: nn.Module, config: TrainConfig) -> AdamW:
    """AdamW (Loshchilov and Hutter, ICLR 2019); biases, norms and gains, which have one axis, do not decay."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW([group for group in groups if group["params"]], lr=config.learning_rate, betas=config.betas)


def make_scheduler(optimizer: AdamW, config: TrainConfig) -> LambdaLR:
    """Linear warm-up, then a cosine to ``final_learning_rate``, or steps down; stepped once per optimizer step."""
    return LambdaLR(optimizer, partial(learning_rate_factor, config=config))


def learning_rate_factor(step: int, *, config: TrainConfig) -> float:
    """The learning rate of the step with this index, from 0, over ``config.learning_rate``."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = min(1.0, (step - config.warmup_steps) / (config.steps - config.warmup_steps))
    final = config.final_learning_rate / config.learning_rate
    if config.milestones:
        return max(final, 0.1 ** sum(step >= milestone for milestone in config.milestones))
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2
