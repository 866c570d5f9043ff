import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from preconditioned_attention.lab.tasks import OptimizationSettings
from preconditioned_attention.lab.training.optimizer import (
    learning_rate_factor,
    make_optimization,
    make_optimizer,
    make_scheduler,
)
from tests.helpers.toy_task import toy_config


def test_only_parameters_with_two_axes_decay() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    model[0].bias.requires_grad_(False)
    decaying, others = make_optimizer(model, toy_config(weight_decay=0.2)).param_groups
    assert [id(p) for p in decaying["params"]] == [id(model[0].weight)]
    assert [id(p) for p in others["params"]] == [id(model[1].weight), id(model[1].bias)]
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.2, 0.0)


def test_a_model_without_one_kind_of_parameter() -> None:
    assert len(make_optimizer(nn.LayerNorm(4), toy_config()).param_groups) == 1


def test_warm_up_and_cosine() -> None:
    config = toy_config(steps=12, warmup_steps=4, learning_rate=0.1, final_learning_rate=0.01)
    optimizer = make_optimizer(nn.Linear(2, 2), config)
    scheduler = make_scheduler(optimizer, config)
    rates = []
    for _ in range(13):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates[:5] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1])
    assert rates[8] == pytest.approx(0.055)  # half of the cosine
    assert rates[12] == pytest.approx(0.01)
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_milestones_replace_the_cosine() -> None:
    config = toy_config(steps=12, warmup_steps=2, milestones=[9, 6], learning_rate=0.1, final_learning_rate=2e-3)
    factors = [learning_rate_factor(step, config=config) for step in range(12)]
    assert factors == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.1, 0.1, 0.1, 0.02, 0.02, 0.02])
    assert config.with_steps(24).milestones == (12, 18)


def test_no_warm_up_starts_at_the_learning_rate() -> None:
    config = toy_config(steps=10)
    assert learning_rate_factor(0, config=config) == 1.0
    assert learning_rate_factor(5, config=config) == pytest.approx((1 + math.cos(math.pi / 2)) / 2)


def test_the_schedule_survives_its_state_dict() -> None:
    config = toy_config(warmup_steps=3)
    optimizer = make_optimizer(nn.Linear(2, 2), config)
    scheduler = make_scheduler(optimizer, config)
    for _ in range(5):
        optimizer.step()
        scheduler.step()
    other = make_scheduler(make_optimizer(nn.Linear(2, 2), config), config)
    other.load_state_dict(scheduler.state_dict())
    assert other.get_last_lr() == scheduler.get_last_lr()
    assert torch.tensor(other.get_last_lr()).isfinite().all()


class OwnOptimization:
    """A task that brings what it needs."""

    name = "own"

    def make_optimizer(self, model: nn.Module, settings: OptimizationSettings) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)

    def make_schedule(self, settings: OptimizationSettings) -> Callable[[int], float]:
        return lambda step: 1 - step / settings.steps


def test_a_task_brings_its_own() -> None:
    config = toy_config(steps=10, learning_rate=0.5, weight_decay=0.3)
    optimizer, scheduler = make_optimization(nn.Linear(2, 2), OwnOptimization(), config)
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.param_groups[0]["weight_decay"] == 0.3
    optimizer.step()
    scheduler.step()
    assert scheduler.get_last_lr() == [pytest.approx(0.45)]
    with pytest.raises(ValueError, match="task 'own' has a schedule of its own, which milestones do not reach"):
        make_optimization(nn.Linear(2, 2), OwnOptimization(), toy_config(milestones=[3]))
