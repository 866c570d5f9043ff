import pytest
import timm
import torch
from torch import nn

from preconditioned_attention.lab.benchmarking.shapes import SHAPES, STEPS
from preconditioned_attention.lab.benchmarking.steps import MODELS, measure_step


def test_a_step_of_a_small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = STEPS[0]

    def build(shape, device):
        model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=3)
        return model, lambda model: nn.functional.cross_entropy(model(torch.ones(2, 3, 32, 32)), torch.tensor([0, 1]))

    monkeypatch.setitem(MODELS, shape.name, build)
    rows = list(measure_step(shape, device="cpu", seconds=0.0))
    assert [row.candidate for row in rows] == ["plain", "full", "stop"]
    assert all(row.measured == "training step" for row in rows)
    assert rows[1].saved_bytes <= rows[0].saved_bytes


def test_a_shape_without_a_model() -> None:
    with pytest.raises(ValueError, match="no model for shape 'swin-window'"):
        next(measure_step(SHAPES[0], device="cpu", seconds=0.0))
