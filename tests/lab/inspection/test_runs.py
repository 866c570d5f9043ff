from pathlib import Path

import timm
import torch

from preconditioned_attention.conversion import build_without_weights, plan_conversion
from preconditioned_attention.lab.inspection.runs import STAGES, inspect_weights


def test_random_weights_and_a_checkpoint_on_the_same_input(tmp_path: Path) -> None:
    torch.manual_seed(7)
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "weights.pth")
    layers = [entry.path for entry in plan_conversion(build_without_weights("test_vit")).converted]
    stages: list[str] = []
    inputs, inspections = inspect_weights(
        "test_vit", [None, tmp_path / "weights.pth"], layers=layers, images=None, text=None, on_stage=stages.append
    )
    assert stages == [*STAGES, *STAGES]
    assert inputs.description.startswith("generated input")
    assert "seed 0" in inspections[0].weights
    assert "weights.pth" in inspections[1].weights
    assert inspections[0].heads != inspections[1].heads
