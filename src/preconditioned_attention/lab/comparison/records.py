"""``RunRecord``: what a comparison keeps of one run, and its JSON."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from ..._checks import check_integer, check_known, check_number
from ..training.arms import Arm
from .metrics import RunMetrics
from .plan import RunKey
from .read_json import check_entry


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One finished or failed run.

    Args:
        key: which run.
        description: ``Plan.describe(key)`` at the time of the run.
        status: ``"finished"``, or ``"failed"`` (it raised, or gave numbers that are not finite).
        reason: the error message of a failed run.
        traceback: of the exception, if it raised.
        metrics: the metrics it reported; None if it raised.
        weights: hash of each prepared model before the arm was applied.
        random_states: hash of torch's random state after each preparation.
        seconds: how long the run took, from its last start on if it was resumed.
        started: when it was started last, in UTC as ISO 8601; None in the files of earlier versions.
        environment: versions and hardware of the machine that ran it; empty in the files of earlier versions.
    """

    key: RunKey
    description: dict[str, Any]
    status: Literal["finished", "failed"]
    reason: str | None = None
    traceback: str | None = None
    metrics: RunMetrics | None = None
    weights: list[str] = field(default_factory=list)
    random_states: list[str] = field(default_factory=list)
    seconds: float
    started: str | None = None
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether the run reported finite metrics."""
        return self.status == "finished"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        names = [entry.name for entry in dataclasses.fields(self) if entry.name not in ("key", "metrics")]
        values = {name: getattr(self, name) for name in names}
        return {**values, "metrics": None if self.metrics is None else self.metrics.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunRecord:
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError, TypeError: an entry is missing, unknown, or cannot be one of a run; the message names it.
        """
        check_known("entry", values, [entry.name for entry in dataclasses.fields(cls) if entry.name != "key"])
        description = check_entry(values, "description", dict)
        key = _check_description(description)
        status = check_entry(values, "status", str)
        check_known("status", [status], STATUSES)
        stored = check_entry(values, "metrics", (dict, type(None)))
        metrics = None if stored is None else RunMetrics.from_dict(stored, metric=description["metric"])
        record = cls(**{**_check_plain_entries(values), "metrics": metrics}, key=key)
        _check_outcome(record)
        return record


STATUSES = ("finished", "failed")


def _check_description(description: dict[str, Any]) -> RunKey:
    """The key in a run's description, after a check of its entries."""
    for name, kinds in (("arm", str), ("metric", str), ("settings", dict), ("config", (dict, type(None)))):
        check_entry(description, name, kinds)
    if description["config"] is not None:
        Arm.from_dict(description["config"])
    if "variant" in description:
        check_entry(description, "variant", dict)
    seed = check_integer("seed", check_entry(description, "seed", int), minimum=0)
    rate = check_number("learning_rate", check_entry(description, "learning_rate", (float, int)), above=0.0)
    return RunKey(seed, rate, description["arm"])


def _check_plain_entries(values: dict[str, Any]) -> dict[str, Any]:
    for name in ("reason", "traceback"):
        check_entry(values, name, (str, type(None)))
    for name in ("weights", "random_states"):
        if not all(isinstance(entry, str) for entry in check_entry(values, name, list)):
            raise TypeError(f"{name!r} must be a list of texts; got {values[name]!r}")
    check_number("seconds", values.get("seconds"))
    started = check_entry({"started": None, **values}, "started", (str, type(None)))
    if started is not None and datetime.datetime.fromisoformat(started).tzinfo is None:
        raise ValueError(f"'started' must be a time with its zone; got {started!r}")
    environment = check_entry({"environment": {}, **values}, "environment", dict)
    check_entry({"packages": {}, **environment}, "packages", dict)
    return values


def _check_outcome(record: RunRecord) -> None:
    """Check that a finished run has finite metrics, and a failed one a reason."""
    if record.finished and record.metrics is None:
        raise ValueError("'metrics' is null, and the run is finished")
    if record.finished and record.metrics is not None and (reason := record.metrics.not_finite()) is not None:
        raise ValueError(f"{reason}, and the run is finished")
    if record.finished and not record.weights:
        raise ValueError("'weights' is empty, and the run is finished")
    if not record.finished and record.reason is None:
        raise ValueError("'reason' is null, and the run has failed")


def to_json(values: Any, *, indent: int | None = 1) -> str:
    """Strict JSON: numbers that are not finite, which JSON cannot hold, become the strings "inf", "-inf", "nan"."""
    return json.dumps(_json_safe(values), indent=indent, allow_nan=False) + "\n"


def _json_safe(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _json_safe(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_json_safe(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
