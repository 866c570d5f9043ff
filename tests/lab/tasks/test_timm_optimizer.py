import dataclasses
import math

import pytest
import timm
import torch
from torch import nn

from preconditioned_attention.lab.tasks import OptimizerSettings
from preconditioned_attention.lab.tasks.timm_optimizer import (
    check_optimizer,
    check_schedule,
    create_optimizer,
    create_scheduler,
)
from tests.helpers.schedules import learning_rates, sgd

SETTINGS = OptimizerSettings(
    steps=100,
    batch_size=4,
    learning_rate=1e-3,
    weight_decay=0.05,
    betas=(0.8, 0.9),
    warmup_steps=20,
    final_learning_rate=1e-5,
)


def rates(options: dict, steps: list[int], *, steps_per_epoch: int = 10) -> list[float]:
    optimizer = sgd(SETTINGS.learning_rate)
    shown = learning_rates(create_scheduler(options, optimizer, SETTINGS, steps_per_epoch=steps_per_epoch), 100)
    return [shown[step] for step in steps]


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


@pytest.mark.parametrize("per_epoch", [True, False])
def test_a_restored_scheduler_goes_on_as_the_whole_one_does(per_epoch: bool) -> None:
    options = {"sched": "cosine", "warmup_lr": 1e-6, "step_on_epochs": per_epoch}
    optimizers = [sgd(SETTINGS.learning_rate) for _ in range(2)]
    whole, restored = (create_scheduler(options, one, SETTINGS, steps_per_epoch=10) for one in optimizers)
    learning_rates(whole, 37)
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    restored.load_state_dict(whole.state_dict())
    assert learning_rates(restored, 60) == learning_rates(whole, 60)


def test_milestones_are_refused() -> None:
    with pytest.raises(ValueError, match="schedule of its own; leave out milestones"):
        create_scheduler({}, sgd(), dataclasses.replace(SETTINGS, milestones=(3,)), steps_per_epoch=10)


def test_vectors_and_what_the_model_names_do_not_decay() -> None:
    model = timm.create_model("vit_tiny_patch16_224", embed_dim=24, depth=1, num_heads=2, num_classes=3)
    optimizer = create_optimizer("adamw", model, SETTINGS)
    assert isinstance(optimizer, torch.optim.AdamW)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    by_name = {name: decays[id(parameter)] for name, parameter in model.named_parameters()}
    assert {by_name[name] for name in ("pos_embed", "cls_token", "norm.weight", "blocks.0.attn.qkv.bias")} == {0.0}
    assert {by_name[name] for name in ("blocks.0.attn.qkv.weight", "patch_embed.proj.weight")} == {0.05}
    assert all(group["betas"] == (0.8, 0.9) and group["lr"] == 1e-3 for group in optimizer.param_groups)


def test_an_optimizer_without_betas_or_eps() -> None:
    assert create_optimizer("sgd", nn.Linear(2, 2), SETTINGS).param_groups[0]["lr"] == 1e-3
    with pytest.raises(ValueError, match="eps must be left out: timm's optimizer 'sgd' has none; got 1e-06"):
        create_optimizer("sgd", nn.Linear(2, 2), dataclasses.replace(SETTINGS, eps=1e-6))


def test_eps_is_timms_unless_it_is_set() -> None:
    given = dataclasses.replace(SETTINGS, eps=1e-4)
    assert create_optimizer("lamb", nn.Linear(2, 2), SETTINGS).param_groups[0]["eps"] == 1e-6
    assert create_optimizer("lamb", nn.Linear(2, 2), given).param_groups[0]["eps"] == 1e-4


def test_names_that_timm_does_not_have() -> None:
    with pytest.raises(ValueError, match=r"unknown optimizer of timm: 'adamv'.*did you mean 'adam"):
        check_optimizer("adamv")
    with pytest.raises(ValueError, match=r"unknown option in schedule: 'warmup' .*warmup_lr"):
        check_schedule({"warmup": 1})
    with pytest.raises(ValueError, match=r"unknown option in schedule: 'num_epochs'"):
        check_schedule({"num_epochs": 3})
    with pytest.raises(ValueError, match="sched must be a function of the step; got 'plateau'"):
        check_schedule({"sched": "plateau"})
