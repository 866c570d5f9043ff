import pytest

from preconditioned_attention.lab.tasks import OptimizerSettings
from preconditioned_attention.lab.tasks.triangle import make_triangle
from tests.helpers.schedules import learning_rates, sgd


def settings(**changes: object) -> OptimizerSettings:
    options = {"steps": 100, "batch_size": 4, "learning_rate": 1.0, "weight_decay": 0.01, "betas": (0.9, 0.98)}
    return OptimizerSettings(**{**options, **changes})  # type: ignore[arg-type]


def test_up_to_three_quarters_and_down() -> None:
    rates = learning_rates(make_triangle(sgd(), settings(), start=0.25, peak=0.75), 102)
    assert [rates[step] for step in (0, 25, 50, 75, 80, 100)] == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.8, 0.0])
    assert rates[101] == 0.0
    assert all(0 < rate <= 1 for rate in rates[:100])


@pytest.mark.parametrize("changes", [{"warmup_steps": 3}, {"final_learning_rate": 1e-5}, {"milestones": (4,)}])
def test_no_schedule_beside_it(changes: dict) -> None:
    with pytest.raises(ValueError, match=f"schedule of its own; leave out {next(iter(changes))}"):
        make_triangle(sgd(), settings(**changes), start=0.25, peak=0.75)
