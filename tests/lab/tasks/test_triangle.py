import pytest

from preconditioned_attention.lab.tasks import OptimizationSettings
from preconditioned_attention.lab.tasks.triangle import triangle


def settings(**changes: float) -> OptimizationSettings:
    free = {"warmup_steps": 0, "final_learning_rate": 0.0, **changes}
    return OptimizationSettings(
        steps=100,
        batch_size=4,
        learning_rate=1e-3,
        weight_decay=0.01,
        betas=(0.9, 0.98),
        **free,  # type: ignore[arg-type]
    )


def test_up_to_three_quarters_and_down() -> None:
    factor = triangle(settings(), start=0.25, peak=0.75)
    assert [factor(step) for step in (0, 25, 50, 75, 80, 100)] == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.8, 0.0])
    assert factor(101) == 0.0
    assert all(0 < factor(step) <= 1 for step in range(100))


@pytest.mark.parametrize("changes", [{"warmup_steps": 3}, {"final_learning_rate": 1e-5}])
def test_no_schedule_beside_it(changes: dict) -> None:
    with pytest.raises(ValueError, match="warmup_steps and final_learning_rate must be 0"):
        triangle(settings(**changes), start=0.25, peak=0.75)
