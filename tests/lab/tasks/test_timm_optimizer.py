import math

import pytest
import timm
import torch
from torch import nn

from preconditioned_attention.lab.tasks import OptimizationSettings
from preconditioned_attention.lab.tasks.timm_optimizer import (
    check_optimizer,
    check_schedule,
    create_optimizer,
    create_schedule,
)

SETTINGS = OptimizationSettings(
    steps=100,
    batch_size=4,
    learning_rate=1e-3,
    weight_decay=0.05,
    betas=(0.8, 0.9),
    warmup_steps=20,
    final_learning_rate=1e-5,
)


def rates(options: dict, steps: list[int], *, steps_per_epoch: int = 10) -> list[float]:
    factor = create_schedule(options, SETTINGS, steps_per_epoch=steps_per_epoch)
    return [factor(step) * SETTINGS.learning_rate for step in steps]


def cosine(part: float) -> float:
    return 1e-5 + 0.5 * (1e-3 - 1e-5) * (1 + math.cos(math.pi * part))


def test_per_epoch_the_rate_changes_with_the_epoch() -> None:
    shown = rates({"sched": "cosine", "warmup_lr": 1e-6}, [0, 9, 10, 20, 29, 50, 99])
    expected = [1e-6, 1e-6, (1e-3 + 1e-6) / 2, cosine(0.2), cosine(0.2), cosine(0.5), cosine(0.9)]
    assert shown == pytest.approx(expected)


def test_per_step_with_the_warm_up_before_the_cosine() -> None:
    options = {"sched": "cosine", "warmup_lr": 1e-6, "warmup_prefix": True, "step_on_epochs": False}
    shown = rates(options, [0, 10, 20, 60, 99])
    assert shown == pytest.approx([1e-6, (1e-3 + 1e-6) / 2, 1e-3, cosine(0.5), cosine(79 / 80)])


def test_the_rate_is_a_function_of_the_step_alone() -> None:
    options = {"sched": "cosine", "warmup_lr": 1e-6, "step_on_epochs": False}
    assert rates(options, [70, 3, 70])[::2] == [rates(options, [70])[0]] * 2


def test_vectors_and_what_the_model_names_do_not_decay() -> None:
    model = timm.create_model("vit_tiny_patch16_224", embed_dim=24, depth=1, num_heads=2, num_classes=3)
    optimizer = create_optimizer("adamw", model, SETTINGS)
    assert isinstance(optimizer, torch.optim.AdamW)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    by_name = {name: decays[id(parameter)] for name, parameter in model.named_parameters()}
    assert {by_name[name] for name in ("pos_embed", "cls_token", "norm.weight", "blocks.0.attn.qkv.bias")} == {0.0}
    assert {by_name[name] for name in ("blocks.0.attn.qkv.weight", "patch_embed.proj.weight")} == {0.05}
    assert all(group["betas"] == (0.8, 0.9) and group["lr"] == 1e-3 for group in optimizer.param_groups)


def test_an_optimizer_without_betas() -> None:
    assert create_optimizer("sgd", nn.Linear(2, 2), SETTINGS).param_groups[0]["lr"] == 1e-3


def test_names_that_timm_does_not_have() -> None:
    with pytest.raises(ValueError, match=r"unknown optimizer of timm: 'adamv'.*did you mean 'adam"):
        check_optimizer("adamv")
    with pytest.raises(ValueError, match=r"unknown option in schedule: 'warmup' .*warmup_lr"):
        check_schedule({"warmup": 1})
    with pytest.raises(ValueError, match=r"unknown option in schedule: 'num_epochs'"):
        check_schedule({"num_epochs": 3})
    with pytest.raises(ValueError, match="sched must be a function of the step; got 'plateau'"):
        check_schedule({"sched": "plateau"})
