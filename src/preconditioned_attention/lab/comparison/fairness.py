"""The check that runs of one seed started from the same weights and random state, whatever their arm or rate."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .preparation import FairnessError
from .records import RunRecord


@dataclass(frozen=True)
class StartedRun:
    """A finished run, its folder, and what tells models apart that may start from other weights."""

    folder: Path
    record: RunRecord
    variant: str


def check_starts(runs: Iterable[StartedRun]) -> None:
    """Check the hashes of finished runs.

    Raises:
        FairnessError: two runs of one seed and variant started differently, or one was never prepared; the message
            names the folders.
    """
    first: dict[tuple[int, str], StartedRun] = {}
    for run in runs:
        if not run.record.weights:
            raise FairnessError(
                f"run {run.record.key.stem} never called prepare(model), so no arm was applied ({run.folder}). "
                "Call it on every new model, before the optimizer is created"
            )
        _check_pair(first.setdefault((run.record.key.seed, run.variant), run), run)


def _check_pair(one: StartedRun, other: StartedRun) -> None:
    pair = f"seed {other.record.key.seed}: runs {one.record.key.stem} and {other.record.key.stem}"
    places = f" (folders {one.folder} and {other.folder})"
    if one.record.weights != other.record.weights:
        raise FairnessError(
            f"{pair} had different initial weights{places}. Build the model inside run, from torch's global "
            "generator, which compare seeds before each run"
        )
    if one.record.random_states != other.record.random_states:
        raise FairnessError(
            f"{pair} had different random states after prepare(model){places}. Draw the same random numbers in every "
            "run before that call (building the model, splitting the data), whatever the arm or learning rate"
        )
