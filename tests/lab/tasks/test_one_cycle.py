import copy

import pytest
import torch

from preconditioned_attention.lab.tasks.one_cycle import OneCycleAdamW, one_cycle
from preconditioned_attention.lab.tasks.protocol import OptimizationSettings


def settings(**options: object) -> OptimizationSettings:
    defaults = {"steps": 40, "batch_size": 4, "learning_rate": 1e-2, "weight_decay": 0.0, "betas": (0.9, 0.999)}
    return OptimizationSettings(**{**defaults, "warmup_steps": 10, "final_learning_rate": 0.0, **options})


def parameter() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))


def run(weight: torch.nn.Parameter, optimizer: torch.optim.Optimizer, scheduler: object, steps: range) -> list[float]:
    rates = []
    for step in steps:
        optimizer.zero_grad()
        ((weight - step / 10) ** 2).sum().backward()
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < 39:  # OneCycleLR refuses to be asked for the step after the last
            scheduler.step()
    return rates


def ours(weight: torch.nn.Parameter) -> tuple:
    optimizer = OneCycleAdamW([weight], settings())
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, one_cycle(settings()))


def test_it_is_what_torch_does_with_adamw() -> None:
    mine, theirs = parameter(), parameter()
    optimizer = torch.optim.AdamW([theirs], lr=1e-2, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1e-2, pct_start=10 / 40, anneal_strategy="linear", total_steps=40
    )
    expected = run(theirs, optimizer, scheduler, range(40))
    assert run(mine, *ours(mine), range(40)) == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=0)


def test_a_restored_run_goes_on_in_the_same_place() -> None:
    whole, part = parameter(), parameter()
    run(whole, *ours(whole), range(40))
    optimizer, scheduler = ours(part)
    run(part, optimizer, scheduler, range(17))
    saved = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
    optimizer, scheduler = ours(part)
    optimizer.load_state_dict(saved[0])
    scheduler.load_state_dict(saved[1])
    run(part, optimizer, scheduler, range(17, 40))
    assert torch.equal(whole, part)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (2, 0), (3, 0), (3, 1), (3, 2)])
def test_short_runs(steps: int, warmup: int) -> None:
    factor = one_cycle(settings(steps=steps, warmup_steps=warmup))
    values = [factor(step) for step in range(steps + 1)]
    assert all(0 < value <= 1 for value in values)
    assert max(values[:steps]) == 1.0


def test_a_final_learning_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="final_learning_rate: the cycle ends at"):
        one_cycle(settings(final_learning_rate=1e-6))
