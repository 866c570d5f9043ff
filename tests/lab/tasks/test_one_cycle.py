import copy
from collections.abc import Iterable

import pytest
import torch
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

from preconditioned_attention.lab.tasks import OptimizerSettings
from preconditioned_attention.lab.tasks.one_cycle import make_one_cycle

STEPS, WARMUP, PEAK = 40, 10, 1e-2


def settings(**options: object) -> OptimizerSettings:
    defaults = {"batch_size": 4, "learning_rate": PEAK, "weight_decay": 0.0, "betas": (0.9, 0.999)}
    return OptimizerSettings(**{**defaults, "steps": STEPS, "warmup_steps": WARMUP, **options})  # type: ignore[arg-type]


def parameter() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))


def make(weight: torch.nn.Parameter, **options: object) -> tuple[AdamW, OneCycleLR]:
    optimizer = AdamW([weight], lr=PEAK, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0)
    return optimizer, make_one_cycle(optimizer, settings(**options))


def run(
    weight: torch.nn.Parameter, optimizer: AdamW, scheduler: OneCycleLR, steps: Iterable[int]
) -> list[tuple[float, float]]:
    used = []
    for step in steps:
        optimizer.zero_grad()
        ((weight - step / 10) ** 2).sum().backward()
        used.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"][0]))
        optimizer.step()
        scheduler.step()
    return used


def line(step: int, start: float, peak: float, end: float) -> float:
    top, last = WARMUP - 1, STEPS - 1
    return start + (peak - start) * step / top if step < top else peak + (end - peak) * (step - top) / (last - top)


def test_learning_rate_and_first_beta_run_in_straight_lines() -> None:
    weight = parameter()
    used = run(weight, *make(weight), range(STEPS))
    rates = [PEAK * line(step, 1 / 25, 1.0, 1 / 250_000) for step in range(STEPS)]
    assert [rate for rate, _ in used] == pytest.approx(rates, rel=1e-10)
    assert [beta for _, beta in used] == pytest.approx([line(step, 0.95, 0.85, 0.95) for step in range(STEPS)])


def test_a_restored_run_goes_on_in_the_same_place() -> None:
    whole, part = parameter(), parameter()
    run(whole, *make(whole), range(STEPS))
    optimizer, scheduler = make(part)
    run(part, optimizer, scheduler, range(17))
    saved = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
    optimizer, scheduler = make(part)
    optimizer.load_state_dict(saved[0])
    scheduler.load_state_dict(saved[1])
    run(part, optimizer, scheduler, range(17, STEPS))
    assert torch.equal(whole, part)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)])
def test_short_runs(steps: int, warmup: int) -> None:
    weight = parameter()
    rates = [rate for rate, _ in run(weight, *make(weight, steps=steps, warmup_steps=warmup), range(steps))]
    assert all(0 < rate <= PEAK for rate in rates)
    assert rates[max(0, warmup - 1)] == max(rates) == pytest.approx(PEAK, rel=1e-8)


@pytest.mark.parametrize("options", [{"final_learning_rate": 1e-6}, {"milestones": (3,)}])
def test_what_the_cycle_decides_is_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=f"schedule of its own; leave out {next(iter(options))}"):
        make(parameter(), **options)
