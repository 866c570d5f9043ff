"""Runs for worker processes: at the top level of a module, and each leaves a line in the comparison's folder."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from preconditioned_attention.lab.comparison import Plan, Prepare
from preconditioned_attention.lab.comparison.job import Job
from preconditioned_attention.lab.comparison.store import RunStore
from tests.helpers.synthetic_runs import ARMS, run, tiny_model

PLAN = {"arms": ARMS, "seeds": (0, 1), "learning_rates": (1e-4, 1e-3)}


def begin(run: Any, output: Path, **changes: Any) -> Job:
    """A job of twelve runs, or of others."""
    return Job.begin(run, RunStore(output, Plan(**{**PLAN, **changes})), resume=False, overwrite=False)


def logged(prepare: Prepare, seed: int, learning_rate: float) -> Mapping[str, Any]:
    """Long enough for others to begin meanwhile."""
    assert prepare.folder is not None
    _log(prepare.folder)
    time.sleep(0.2)
    return run(prepare, seed, learning_rate)


def killed_once(prepare: Prepare, seed: int, learning_rate: float) -> Mapping[str, Any]:
    """The run row-seed0-lr0.0001 kills its process when it is done for the first time."""
    assert prepare.folder is not None
    first = not any(line["stem"] == "row-seed0-lr0.0001" for line in log(prepare.folder.parents[1]))
    metrics = logged(prepare, seed, learning_rate)
    if first and prepare.folder.name == "row-seed0-lr0.0001":
        os.kill(os.getpid(), signal.SIGKILL)
    return metrics


def killed_always(prepare: Prepare, seed: int, learning_rate: float) -> Mapping[str, Any]:
    """The run row-seed0-lr0.0001 kills its process."""
    assert prepare.folder is not None
    if prepare.folder.name == "row-seed0-lr0.0001":
        os.kill(os.getpid(), signal.SIGSEGV)
    return run(prepare, seed, learning_rate)


def unfair(prepare: Prepare, seed: int, learning_rate: float) -> Mapping[str, Any]:
    """The weights depend on the process."""
    metrics = logged(prepare, seed, learning_rate)
    torch.manual_seed(time.monotonic_ns() % 2**31)
    prepare.weights.clear()
    prepare.arm = None
    prepare(tiny_model())
    return metrics


def log(output: Path) -> list[dict[str, Any]]:
    """The lines of all runs that began, in order."""
    path = output / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _log(folder: Path) -> None:
    line = {
        "stem": folder.name,
        "process": os.getpid(),
        "session": os.getsid(0),
        "threads": torch.get_num_threads(),
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }
    with (folder.parents[1] / "log.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
