"""Run folders that something has broken: a run goes on with the numbers of one that was not, or names the file.

``UNFINISHED`` is a run that goes on after step 8 of 12; of ``FINISHED`` result and weights are left, not checkpoints.
"""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from preconditioned_attention.cli import _is_for_user
from preconditioned_attention.lab.training import TrainConfig, TrainResult, train
from preconditioned_attention.lab.training.resuming import evaluated_steps, evaluation_is_due
from tests.helpers.digits_task import TASK, digits_options
from tests.helpers.toy_task import toy_config

Break = Callable[[Path], object]
NEWEST = "checkpoints/step-00000008"

OPTIONS = {"evaluate_every": 4, "checkpoint_every": 4, "keep_checkpoints": 3, "keep_best": True, "ema_decay": 0.5}
CONFIG = toy_config(**OPTIONS)
MONITORED = toy_config(
    task=TASK,
    task_options=digits_options(embed_dim=8, depth=1, num_heads=2),
    steps=4,
    checkpoint_every=2,
    keep_checkpoints=2,
    monitor={"every": 2},
)


def write(name: str, content: str | bytes) -> Break:
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def cut(name: str, size: int) -> Break:
    return lambda folder: os.truncate(folder / name, size)


def remove(*names: str) -> Break:
    def break_(folder: Path) -> None:
        for name in names:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return break_


def replace(name: str, pattern: str, by: str) -> Break:
    """Replace the first match of a pattern in a text file."""

    def break_(folder: Path) -> None:
        text, count = re.subn(pattern, by, (folder / name).read_text(), count=1, flags=re.MULTILINE)
        assert count == 1, pattern
        (folder / name).write_text(text)

    return break_


def as_folder(name: str) -> Break:
    return lambda folder: (remove(name)(folder), (folder / name).mkdir())


def as_pipe(name: str) -> Break:
    return lambda folder: (remove(name)(folder), os.mkfifo(folder / name))


def edit_tensors(name: str, edit: Callable[[torch.Tensor], torch.Tensor]) -> Break:
    def break_(folder: Path) -> None:
        tensors = load_file(folder / name)
        key = next(key for key in sorted(tensors) if tensors[key].ndim == 2)
        save_file({**tensors, key: edit(tensors[key])}, folder / name, metadata={"format": "pt"})

    return break_


def edit_result(**changes: object) -> Break:
    def break_(folder: Path) -> None:
        content = json.loads((folder / "result.json").read_text())
        (folder / "result.json").write_text(json.dumps({**content, **changes}))

    return break_


def metrics_line(step: int) -> str:
    return rf'^\{{"kind": "step", "step": {step},.*\n'


def value_of(name: str, step: int, value: str) -> Break:
    """Replace a value of a step's record."""
    return replace("metrics.jsonl", rf'("step": {step},.*"{name}": )[^,}}]+', rf"\g<1>{value}")


def insert(step: int, line: str | bytes) -> Break:
    """Insert a line before that of a step."""

    def break_(folder: Path) -> None:
        lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
        lines.insert(step - 1, (line.encode() if isinstance(line, str) else line) + b"\n")
        (folder / "metrics.jsonl").write_bytes(b"".join(lines))

    return break_


def append(name: str, content: bytes) -> Break:
    def break_(folder: Path) -> None:
        with (folder / name).open("ab") as file:
            file.write(content)

    return break_


def evaluation(step: object = 4, accuracy: object = 0.5) -> str:
    return json.dumps({"kind": "evaluation", "step": step, "loss": 1.0, "accuracy": accuracy})


CONFIGURATION: dict[str, Break] = {
    "missing": remove("config.yaml"),
    "empty": write("config.yaml", ""),
    "not UTF-8": write("config.yaml", b"task: t\xffy\n"),
    "UTF-16": write("config.yaml", CONFIG.to_yaml().encode("utf-16")),
    "zeros": write("config.yaml", bytes(200)),
    "cut": cut("config.yaml", 40),
    "no YAML": write("config.yaml", "task: [toy\n"),
    "a list": write("config.yaml", "- task\n- toy\n"),
    "an unknown option": append("config.yaml", b"stepps: 3\n"),
    "a missing option": replace("config.yaml", "^batch_size:.*\n", ""),
    "a wrong type": replace("config.yaml", "^steps: 12", "steps: many"),
    "a wrong value": replace("config.yaml", "^steps: 12", "steps: -12"),
    "nan": replace("config.yaml", "^learning_rate:.*", "learning_rate: .nan"),
    "a folder": as_folder("config.yaml"),
    "a pipe": as_pipe("config.yaml"),
    "a dangling link": lambda folder: (remove("config.yaml")(folder), (folder / "config.yaml").symlink_to("gone")),
}

METRICS: dict[str, Break] = {
    "missing": remove("metrics.jsonl"),
    "empty": write("metrics.jsonl", ""),
    "too few steps": cut("metrics.jsonl", 300),
    "zeros": write("metrics.jsonl", bytes(300)),
    "a folder": as_folder("metrics.jsonl"),
    "a pipe": as_pipe("metrics.jsonl"),
    "no JSON": insert(3, "oops"),
    "a blank line": insert(3, ""),
    "not UTF-8": insert(3, b"\xff\xfe"),
    "a list": insert(3, "[]"),
    "a number": insert(3, "5"),
    "nested deeply": insert(3, "[" * 100_000),
    "an endless number": insert(3, '{"kind": "step", "step": ' + "9" * 5000 + "}"),
    "an unknown kind": insert(3, '{"kind": "test", "step": 3}'),
    "no kind": insert(3, '{"step": 3, "loss": 1.0}'),
    "a step that is text": insert(3, '{"kind": "step", "step": "3", "loss": 1.0, "seconds": 1.0}'),
    "a step that is no whole number": insert(3, '{"kind": "step", "step": 3.0, "loss": 1.0, "seconds": 1.0}'),
    "a step that is true": insert(1, '{"kind": "step", "step": true, "loss": 1.0, "seconds": 1.0}'),
    "a step before the first": insert(1, '{"kind": "step", "step": 0, "loss": 1.0, "seconds": 1.0}'),
    "a gap": replace("metrics.jsonl", metrics_line(5), ""),
    "a step twice": replace("metrics.jsonl", f"({metrics_line(5)})", r"\1\1"),
    "two steps swapped": replace("metrics.jsonl", f"({metrics_line(5)})({metrics_line(6)})", r"\2\1"),
    "a loss that is NaN": value_of("loss", 3, "NaN"),
    "a loss that is infinite": value_of("loss", 3, "Infinity"),
    "a loss that becomes infinite": value_of("loss", 3, "1e999"),
    "a loss that is text": value_of("loss", 3, '"1.0"'),
    "a loss that is null": value_of("loss", 3, "null"),
    "a loss that is true": value_of("loss", 3, "true"),
    "a loss that is a list": value_of("loss", 3, "[1.0]"),
    "no loss": replace("metrics.jsonl", r'("step": 3, )"loss": [^,]+, ', r"\1"),
    "seconds that are NaN": value_of("seconds", 3, "NaN"),
    "a gradient norm that is text": value_of("gradient_norm", 3, '"1"'),
    "no evaluation": replace("metrics.jsonl", '^.*"evaluation", "step": 4,.*\n', ""),
    "an evaluation twice": replace("metrics.jsonl", '(^.*"evaluation", "step": 4,.*\n)', r"\1\1"),
    "an evaluation that was not due": insert(4, evaluation(step=3)),
    "a metric that is NaN": replace("metrics.jsonl", '(evaluation.*"accuracy": )[^}]+', r"\1NaN"),
    "a metric that is text": replace("metrics.jsonl", '(evaluation.*"accuracy": )[^}]+', r'\1"good"'),
    "no metric": replace("metrics.jsonl", '(evaluation.*), "accuracy": [^}]+', r"\1"),
    "a metric that the best weights did not have": replace(
        "metrics.jsonl", '(evaluation.*"accuracy": )[^}]+', r"\g<1>2.0"
    ),
}

CHECKPOINT: dict[str, Break] = {
    "empty": lambda folder: (shutil.rmtree(folder / NEWEST), (folder / NEWEST).mkdir()),
    "a file": lambda folder: (shutil.rmtree(folder / NEWEST), (folder / NEWEST).write_text("")),
    **{
        f"{name} {problem}": make(f"{NEWEST}/{name}")
        for name in ("model.safetensors", "average.safetensors", "optimizer.bin", "scheduler.bin", "best.safetensors")
        for problem, make in {
            "is missing": remove,
            "is empty": lambda path: write(path, ""),
            "is cut": lambda path: cut(path, 100),
            "is zeros": lambda path: write(path, bytes(5000)),
            "is text": lambda path: write(path, "version https://git-lfs.github.com/spec/v1\n"),
            "is a folder": as_folder,
        }.items()
    },
    "weights of another shape": edit_tensors(f"{NEWEST}/model.safetensors", lambda tensor: tensor[:2]),
    "averages of another shape": edit_tensors(f"{NEWEST}/average.safetensors", lambda tensor: tensor[:2]),
    "best weights without a step": edit_tensors(f"{NEWEST}/best.safetensors", torch.clone),
}

HARMLESS: dict[str, Break] = {
    "an unfinished line": append("metrics.jsonl", b'{"kind": "step", "st'),
    "zeros after a power failure": append("metrics.jsonl", bytes(100)),
    "a line of another system": replace("metrics.jsonl", "\n", "\r\n"),
    "a gradient norm that a scaler allowed": value_of("gradient_norm", 3, "Infinity"),
    "an unfinished checkpoint": lambda folder: (folder / "checkpoints" / ".writing-step-00000012").mkdir(),
    "a file of the user": write("checkpoints/notes.txt", "mine"),
    "a checkpoint with a name of its own": lambda folder: (folder / "checkpoints" / "step-best").mkdir(),
    "no checkpoint": remove("checkpoints"),
    "an empty folder of checkpoints": lambda folder: (remove("checkpoints")(folder), (folder / "checkpoints").mkdir()),
    "nothing but a configuration": lambda folder: remove("checkpoints", "metrics.jsonl", "tensorboard")(folder),
    "no trackers": remove("tensorboard"),
    "an unfinished configuration": write(".config.yaml.writing", "ta"),
    "random states, which no step uses": remove(f"{NEWEST}/random_states_0.pkl"),
}

ELSEWHERE: dict[str, tuple[Break, str]] = {
    "checkpoints that are a file": (lambda f: (remove("checkpoints")(f), write("checkpoints", "")(f)), "checkpoints"),
    "trackers that are a file": (lambda f: (remove("tensorboard")(f), write("tensorboard", "")(f)), "tensorboard"),
    "pictures that are a file": (write("pictures", ""), "pictures"),
    "a checkpoint after the last step": (
        lambda folder: (folder / NEWEST).rename(folder / "checkpoints" / "step-00000099"),
        "checkpoints/step-00000099",
    ),
    "a claim that is a folder": (lambda folder: (folder / ".claim").mkdir(), ".claim"),
}

FINISHED: dict[str, Break] = {
    "empty": write("result.json", ""),
    "cut": cut("result.json", 300),
    "not UTF-8": append("result.json", b"\xff"),
    "a list": write("result.json", "[]"),
    "null": write("result.json", "null"),
    "nested deeply": write("result.json", "[" * 100_000),
    "a metric that is NaN": edit_result(test={"accuracy": float("nan")}),
    "a metric that is text": edit_result(test={"accuracy": "good"}),
    "a metric that is null": edit_result(validation={"accuracy": None}),
    "metrics that are a number": edit_result(test=0.5),
    "a step that is text": edit_result(step="12"),
    "evaluations that are none": edit_result(evaluations=None),
    "an evaluation that is a list": edit_result(evaluations=[[4, 0.5]]),
    "seconds that are infinite": edit_result(seconds_per_step=float("inf")),
    "no environment": edit_result(environment=None),
    "samples that are a list": edit_result(samples=["text"]),
    "a folder": as_folder("result.json"),
    "a pipe": as_pipe("result.json"),
}

FINISHED_WEIGHTS: dict[str, Break] = {
    "empty": write("model.safetensors", ""),
    "cut": cut("model.safetensors", 100),
    "a folder": as_folder("model.safetensors"),
    "of another shape": edit_tensors("model.safetensors", lambda tensor: tensor[:2]),
    "missing": remove("model.safetensors"),
}

CONDITIONING: dict[str, Break] = {
    "missing": remove("conditioning.csv"),
    "empty": write("conditioning.csv", ""),
    "another table": write("conditioning.csv", "a,b\n1,2\n"),
    "not UTF-8": append("conditioning.csv", b"\xff\n"),
    "a folder": as_folder("conditioning.csv"),
    "too few cells": append("conditioning.csv", b"1,2\n"),
    "a layer of another model": replace("conditioning.csv", r"^(1,0,)blocks\.0\.attn", r"\1blocks.7.attn"),
    "a step that was not recorded": replace("conditioning.csv", "^1,0,", "2,0,"),
    "a step that is missing": replace("conditioning.csv", "(?:^1,0,.*\n)+", ""),
    "a step that is text": replace("conditioning.csv", "^1,0,", "one,0,"),
    "a matrix twice": replace("conditioning.csv", "(^1,0,.*\n)", r"\1\1"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, TrainConfig, TrainResult]]:
    """Finished runs, with all checkpoints."""
    runs = {}
    for name, config in {"toy": CONFIG, "monitored": MONITORED}.items():
        folder = tmp_path_factory.mktemp(name)
        runs[name] = (folder, config, train(config, folder, progress=False))
    return runs


def copied(whole: dict[str, tuple[Path, TrainConfig, TrainResult]], name: str, folder: Path, *gone: str) -> TrainConfig:
    source, config, _ = whole[name]
    shutil.copytree(source, folder)
    remove(*gone)(folder)
    return config


def contents(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def assert_refused(config: TrainConfig, folder: Path, *names: str) -> None:
    """In one sentence that the command shows, with the file's name, and nothing is changed."""
    before = contents(folder)
    with pytest.raises(Exception) as caught:
        train(config, folder, resume=True, progress=False)
    message = str(caught.value)
    assert _is_for_user(caught.value), repr(caught.value)
    assert any(str(folder / name) in message for name in names), message
    assert "\n" not in message
    assert contents(folder) == before


UNFINISHED = ("checkpoints/step-00000012", "result.json", "model.safetensors", "report.html")


@pytest.mark.parametrize("case", CONFIGURATION)
def test_a_broken_configuration_is_named(whole, tmp_path: Path, case: str) -> None:
    folder = tmp_path / "run"
    config = copied(whole, "toy", folder, *UNFINISHED)
    CONFIGURATION[case](folder)
    assert_refused(config, folder, "config.yaml")


@pytest.mark.parametrize("case", METRICS)
def test_broken_metrics_are_named(whole, tmp_path: Path, case: str) -> None:
    folder = tmp_path / "run"
    config = copied(whole, "toy", folder, *UNFINISHED)
    METRICS[case](folder)
    assert_refused(config, folder, "metrics.jsonl", NEWEST)


@pytest.mark.parametrize("case", CHECKPOINT)
def test_a_broken_checkpoint_is_named_and_the_one_before_can_be_used(whole, tmp_path: Path, case: str) -> None:
    folder = tmp_path / "run"
    config = copied(whole, "toy", folder, *UNFINISHED)
    CHECKPOINT[case](folder)
    assert_refused(config, folder, NEWEST)
    remove(NEWEST)(folder)
    assert_same_numbers(train(config, folder, resume=True, progress=False), whole["toy"][2])


@pytest.mark.parametrize("case", HARMLESS)
def test_goes_on_with_the_same_numbers(whole, tmp_path: Path, case: str) -> None:
    folder = tmp_path / "run"
    config = copied(whole, "toy", folder, *UNFINISHED)
    HARMLESS[case](folder)
    assert_same_numbers(train(config, folder, resume=True, progress=False), whole["toy"][2])
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


@pytest.mark.parametrize("case", ELSEWHERE)
def test_other_broken_parts_are_named(whole, tmp_path: Path, case: str) -> None:
    folder = tmp_path / "run"
    config = copied(whole, "toy", folder, *UNFINISHED)
    ELSEWHERE[case][0](folder)
    assert_refused(config, folder, ELSEWHERE[case][1])


@pytest.mark.parametrize("case", FINISHED)
def test_a_broken_result_is_named(whole, tmp_path: Path, case: str) -> None:
    folder = tmp_path / "run"
    config = copied(whole, "toy", folder, "checkpoints")
    FINISHED[case](folder)
    assert_refused(config, folder, "result.json")


@pytest.mark.parametrize("case", FINISHED_WEIGHTS)
def test_broken_weights_are_named(whole, tmp_path: Path, case: str) -> None:
    folder = tmp_path / "run"
    config = copied(whole, "toy", folder, "checkpoints")
    FINISHED_WEIGHTS[case](folder)
    assert_refused(config, folder, "model.safetensors", "")


@pytest.mark.parametrize("case", CONDITIONING)
def test_broken_condition_numbers_are_named(whole, tmp_path: Path, case: str) -> None:
    folder = tmp_path / "run"
    config = copied(whole, "monitored", folder, "checkpoints/step-00000004")
    CONDITIONING[case](folder)
    assert_refused(config, folder, "conditioning.csv")


def assert_same_numbers(one: TrainResult, other: TrainResult) -> None:
    assert (one.losses, one.evaluations, one.test, one.step) == (
        other.losses,
        other.evaluations,
        other.test,
        other.step,
    )
    torch.testing.assert_close(one.model.state_dict(), other.model.state_dict(), rtol=0, atol=0)


def test_evaluations_are_due_every_so_many_steps_and_at_the_end() -> None:
    for every in (None, 1, 4, 5, 12, 13):
        config = toy_config(evaluate_every=every)
        assert evaluated_steps(config) == [step for step in range(1, 13) if evaluation_is_due(config, step)]
