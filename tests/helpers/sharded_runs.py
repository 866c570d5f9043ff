"""Configurations of sharded runs, and how they are compared with those of one process."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from preconditioned_attention.lab.training import TrainConfig
from tests.helpers.digits_task import TASK, digits_options
from tests.helpers.toy_task import toy_config
from tests.helpers.training_worker import losses, records

CONFIGURED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",  # the default of `accelerate launch --use_fsdp`
}
BY_FLAG: dict[str, Any] = {"fsdp": True}
BY_ACCELERATE: dict[str, Any] = {"environment": CONFIGURED, "present_as_accelerator": True}
TOY = {"accumulation_steps": 2, "batch_size": 8, "ema_decay": 0.9, "clip_norm": 1.0, "warmup_steps": 3}
TOY |= {"keep_best": True, "evaluate_every": 4, "steps": 12}


def vit_config(**changes: object) -> TrainConfig:
    options = {"task": TASK, "task_options": digits_options(embed_dim=16, depth=2, num_heads=2), "batch_size": 32}
    options |= {"learning_rate": 3e-3, "precondition": {"gradient": "full", "gain": 1.0}, "clip_norm": 1.0}
    return toy_config(**{**options, "steps": 30, "ema_decay": 0.9, "monitor": {"every": 10}, **changes})


def assert_same_run(one: Path, other: Path, atol: float = 1e-5) -> None:
    torch.testing.assert_close(torch.tensor(losses(other)), torch.tensor(losses(one)), rtol=0, atol=atol)
    last, last_of_other = (records(path, "evaluation")[-1] for path in (one, other))
    assert last_of_other == pytest.approx(last, abs=atol)
    # The keys' bias has no gradient but rounding, which Adam divides by its size; outputs do not depend on it.
    weights, weights_of_other = (without_qkv_bias(path / "model.safetensors") for path in (one, other))
    torch.testing.assert_close(weights_of_other, weights, rtol=0, atol=atol)


def without_qkv_bias(path: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in load_file(path).items() if not name.endswith("qkv.bias")}
