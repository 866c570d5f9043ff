import dataclasses
from typing import Any

import pytest

from preconditioned_attention.config import PreconditionConfig
from preconditioned_attention.diagnostics import MonitorConfig
from preconditioned_attention.lab.training import Arm, TrainConfig
from tests.helpers.former import FORMER
from tests.helpers.toy_task import toy_config

FULL = {
    "task_options": {"hidden": 4},
    "precondition": Arm(PreconditionConfig(gradient="stop", gain=0.5)),
    "seed": 3,
    "weight_decay": 0,
    "betas": [0.8, 0.95],
    "eps": 1e-6,
    "warmup_steps": 4,
    "final_learning_rate": 1e-5,
    "milestones": [6, 9],
    "clip_norm": 1,
    "accumulation_steps": 2,
    "precision": "bfloat16",
    "ema_decay": 0.99,
    "evaluate_every": 5,
    "checkpoint_every": 6,
    "batch_ramp_steps": 2,
    "keep_checkpoints": 3,
    "keep_best": True,
    "workers": 1,
    "monitor": MonitorConfig(every=4, heads=2),
}


@pytest.mark.parametrize("options", [{}, FULL], ids=["defaults", "everything"])
def test_round_trips(options: dict[str, Any]) -> None:
    config = toy_config(**options)
    assert TrainConfig.from_dict(config.to_dict()) == config
    assert TrainConfig.from_yaml(config.to_yaml()) == config


@pytest.mark.parametrize("former", [{}, {"pooling": True, "channel": False}], ids=["defaults", "others"])
def test_a_file_whose_options_also_selected_attention(former: dict[str, bool]) -> None:
    lines = [f"  {name}: {str(value).lower()}" for name, value in (FORMER | former).items() if value is not None]
    text = "\n".join(["precondition:", *lines, "task: digits", "steps: 2", "batch_size: 4", "learning_rate: 0.1"])
    include = ("softmax", "pooling") if former else ("softmax", "channel")
    assert TrainConfig.from_yaml(text).precondition == Arm(PreconditionConfig(gradient="stop"), include)


def test_everything_is_covered_by_the_round_trip() -> None:
    default = toy_config()
    changed = [name for name, value in toy_config(**FULL).to_dict().items() if value != default.to_dict()[name]]
    assert {*changed, "task", "steps", "batch_size", "learning_rate"} == {
        field.name for field in dataclasses.fields(TrainConfig)
    }


def test_options_are_copied() -> None:
    options = {"hidden": 4}
    config = toy_config(task_options=options)
    options["hidden"] = 5
    assert config.task_options == {"hidden": 4}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"batch_size": -1}, "batch_size must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"workers": -1}, "workers must be at least 0"),
        ({"milestones": [0]}, "milestones must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be a number|learning_rate must be more than 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be more than 0"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0"),
        ({"eps": 0}, "eps must be"),
        ({"betas": [0.9, 1.0]}, "betas must be at least 0 and less than 1"),
        ({"warmup_steps": 12}, "warmup_steps must be less than steps"),
        ({"final_learning_rate": 1.0}, "final_learning_rate must not be more than learning_rate"),
        ({"clip_norm": 0.0}, "clip_norm must be more than 0"),
        ({"accumulation_steps": 0}, "accumulation_steps must be at least 1"),
        ({"precision": "half"}, "precision must be one of 'float32'"),
        ({"ema_decay": 1.0}, "ema_decay must be at least 0 and less than 1"),
        ({"evaluate_every": 0}, "evaluate_every must be at least 1"),
        ({"checkpoint_every": 0}, "checkpoint_every must be at least 1"),
        ({"keep_checkpoints": 0}, "keep_checkpoints must be at least 1"),
        ({"batch_ramp_steps": -1}, "batch_ramp_steps must be at least 0"),
        (
            {"learning_rat": 0.1},
            r"unknown training option 'learning_rat' \(did you mean 'learning_rate'\?\); known: task,",
        ),
    ],
)
def test_values_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        toy_config(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": None}, "task must be the name of a task"),
        ({"task_options": [1]}, "task_options must be a mapping"),
        ({"precondition": "row"}, "precondition must be an Arm or None"),
        ({"steps": 1.5}, "steps must be an integer"),
        ({"learning_rate": "fast"}, "learning_rate must be a number"),
        ({"betas": 0.9}, "betas must be two numbers"),
    ],
)
def test_values_of_another_type(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        toy_config(**changes)


def test_missing_options_are_named() -> None:
    with pytest.raises(ValueError, match="missing: steps, learning_rate"):
        TrainConfig.from_dict({"task": "toy", "batch_size": 10})


def test_with_steps_scales_what_counts_steps() -> None:
    config = toy_config(steps=400, warmup_steps=40, evaluate_every=50, checkpoint_every=None)
    short = config.with_steps(10)
    assert (short.steps, short.warmup_steps, short.evaluate_every, short.checkpoint_every) == (10, 1, 1, None)
    assert short.with_steps(400).learning_rate == config.learning_rate
    assert config.with_steps(400) == config
