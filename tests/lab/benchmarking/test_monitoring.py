import pytest
import timm
import torch
from torch import nn

from preconditioned_attention.lab.benchmarking.monitoring import _mixed, measure_monitor
from preconditioned_attention.lab.benchmarking.shapes import MONITORED
from preconditioned_attention.lab.benchmarking.steps import MODELS
from preconditioned_attention.lab.benchmarking.timing import Timing


def test_times_recorded_and_other_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(shape, device):
        model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=3)
        return model, lambda model: nn.functional.cross_entropy(model(torch.ones(2, 3, 32, 32)), torch.tensor([0, 1]))

    monkeypatch.setitem(MODELS, MONITORED.name, build)
    rows = list(measure_monitor(device="cpu", seconds=0.0))
    candidates = ["no monitor", "not recorded", "every=1", "every=50"]
    assert [(row.measured, row.candidate) for row in rows] == [
        (f"training step, {name}", candidate) for name in ("plain", "full") for candidate in candidates
    ]
    for none, other, recorded, mixed in (rows[:4], rows[4:]):
        assert none.ratio_p50 == 1
        assert mixed.ratio_p50 == pytest.approx(0.98 * other.ratio_p50 + 0.02 * recorded.ratio_p50)


def test_the_default_rate_is_the_weighted_mean() -> None:
    recorded, other = (
        Timing(turns=turns, median_seconds=s, ratio_p20=s, ratio_p50=s, ratio_p80=s)
        for turns, s in ((7, 5.0), (9, 1.0))
    )
    assert _mixed(recorded, other, 0.25) == Timing(
        turns=7, median_seconds=2.0, ratio_p20=2.0, ratio_p50=2.0, ratio_p80=2.0
    )
