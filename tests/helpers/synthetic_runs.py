"""Runs that need no training: a tiny model for the arms to act on, and metrics that are known in advance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from preconditioned_attention import PreconditionConfig
from preconditioned_attention.lab.comparison import Plan, Prepare, RunMetrics
from preconditioned_attention.lab.comparison.records import RunRecord
from preconditioned_attention.lab.training.arms import Arm

ARMS: dict[str, Arm | None] = {
    "plain": None,
    "row": Arm(),
    "row-stopgrad": Arm(PreconditionConfig(gradient="stop")),
}
LOSSES = [2.0 / (1 + step / 4) for step in range(40)]


def tiny_model() -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)


def arm_of(prepare: Prepare) -> str:
    return next(name for name, arm in ARMS.items() if arm == prepare.arm)


def conditioning(scale: float = 1.0) -> list[dict[str, Any]]:
    return [
        {
            "moment": moment,
            "layer": f"blocks.{index}.attn",
            "kappa_before": scale * (100.0 + index),
            "kappa_after": scale * (70.0 + index),
            "spread_before": 0.25 + index / 100,
            "spread_after": 0.0,
        }
        for moment in ("initialization", "end")
        for index in range(2)
    ]


def run(prepare: Prepare, seed: int, learning_rate: float) -> dict[str, Any]:
    """A fair run: row is better by about 0.02, row-stopgrad about the same; every arm is best at 1e-3."""
    prepare(tiny_model())
    arm = arm_of(prepare)
    gain = {"plain": 0.0, "row": 0.02 + 0.001 * seed, "row-stopgrad": 0.01 * (seed - 1)}[arm]
    accuracy = 0.9 + 0.01 * seed + gain - (0.05 if learning_rate != 1e-3 else 0.0)
    speed = {"plain": 1.0, "row": 0.5, "row-stopgrad": 2.0}[arm]
    return {
        "validation": accuracy + 0.001,
        "test": accuracy,
        "losses": [loss * speed for loss in LOSSES],
        "seconds_per_step": 0.01 / speed * (1 + seed / 100),
        "evaluations": [{"step": step, "accuracy": accuracy * step / 40} for step in (10, 20, 30, 40)],
        "conditioning": conditioning(),
        "remark": "kept",
    }


def make_records(plan: Plan, metrics: Mapping[tuple[str, int, float], RunMetrics | str]) -> dict[Any, RunRecord]:
    """The records of ``plan``: finished with these metrics, or failed with this reason."""
    records = {}
    for key in plan.run_keys():
        outcome = metrics[key.arm, key.seed, key.learning_rate]
        failed = isinstance(outcome, str)
        records[key] = RunRecord(
            key=key,
            description=plan.describe(key),
            status="failed" if failed else "finished",
            reason=outcome if failed else None,
            metrics=None if failed else outcome,
            weights=[f"weights of seed {key.seed}"],
            random_states=[f"random state of seed {key.seed}"],
            seconds=1.0,
        )
    return records
