import dataclasses
from pathlib import Path

import pytest
import torch

from preconditioned_attention import PreconditionConfig, is_preconditioned
from preconditioned_attention.lab.training import Arm, TrainConfig, load_trained, train
from tests.helpers.digits_task import TASK, digits_options

CONFIG = TrainConfig(
    task=TASK,
    task_options=digits_options(embed_dim=8, depth=1, num_heads=2),
    steps=2,
    batch_size=8,
    learning_rate=1e-3,
    precondition=Arm(PreconditionConfig(gradient="stop")),
)


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_the_model_that_was_evaluated_comes_back(tmp_path: Path, ema_decay: float | None) -> None:
    pytest.importorskip("timm")
    config = dataclasses.replace(CONFIG, ema_decay=ema_decay)
    result = train(config, tmp_path, progress=False)
    task, model = load_trained(tmp_path)
    assert is_preconditioned(model)
    assert not model.training
    batch = task.example_batch(4)
    assert torch.equal(model(*batch), result.model(*batch))


def test_a_folder_without_a_finished_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no finished run: config\.yaml and model\.safetensors are expected"):
        load_trained(tmp_path)
