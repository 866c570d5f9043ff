"""AdamW and its learning rate."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from .config import TrainConfig


def make_optimizer(model: nn.Module, config: TrainConfig) -> AdamW:
    """AdamW (Loshchilov and Hutter, ICLR 2019); biases, norms and gains, which have one axis, do not decay."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW([group for group in groups if group["params"]], lr=config.learning_rate, betas=config.betas)


def make_scheduler(optimizer: AdamW, config: TrainConfig) -> LambdaLR:
    """Linear warm-up, then a cosine to ``final_learning_rate``, or steps down; stepped once per optimiser step."""
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
