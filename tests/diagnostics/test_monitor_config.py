import pytest

from preconditioned_attention import ConditionMonitor
from preconditioned_attention.diagnostics import MonitorConfig
from tests.diagnostics.test_monitor import vit


def test_draws_the_same_again_and_another_elsewhere() -> None:
    config = MonitorConfig(heads=3)
    drawn = config.draw("blocks.0 heads", 20, 3).tolist()
    assert drawn == config.draw("blocks.0 heads", 20, 3).tolist() == sorted(set(drawn))
    others = [config.draw(f"blocks.{i} heads", 20, 3).tolist() for i in range(1, 6)]
    assert any(other != drawn for other in others)
    assert MonitorConfig(seed=1).draw("blocks.0 heads", 20, 3).tolist() != drawn
    assert config.draw("x", 4, None).tolist() == config.draw("x", 4, 9).tolist() == [0, 1, 2, 3]


def test_defaults_of_a_run() -> None:
    assert MonitorConfig().for_run() == MonitorConfig(every=50, samples=1)
    assert MonitorConfig(every=3, samples=2).for_run() == MonitorConfig(every=3, samples=2)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"every": 0}, ValueError, "every must be at least 1; got 0"),
        ({"heads": 1.5}, TypeError, "heads must be an integer"),
        ({"tokens": True}, TypeError, "tokens must be an integer"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
    ],
)
def test_says_what_is_wrong(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MonitorConfig.from_dict(options)
    with pytest.raises(error, match=message):
        ConditionMonitor(vit(), **options)


def test_unknown_options() -> None:
    with pytest.raises(ValueError, match=r"unknown monitor option 'evry' \(did you mean 'every'\?\)"):
        MonitorConfig.from_dict({"evry": 3})
