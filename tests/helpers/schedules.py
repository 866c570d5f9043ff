"""The learning rates of a scheduler, step by step."""

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


def sgd(learning_rate: float = 1.0) -> Optimizer:
    """An optimizer of one parameter."""
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=learning_rate)


def learning_rates(scheduler: LRScheduler, steps: int) -> list[float]:
    """What each of the next steps is taken with."""
    rates = []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    return rates
