"""``RunRecord``: what a comparison keeps of one run, and its JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from .metrics import RunMetrics
from .plan import RunKey


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
        """The inverse of :meth:`to_dict`."""
        description, metrics = values["description"], values["metrics"]
        return cls(
            **{**values, "metrics": None if metrics is None else RunMetrics.from_dict(metrics)},
            key=RunKey(description["seed"], description["learning_rate"], description["arm"]),
        )


def to_json(values: Any, *, indent: int | None = 1) -> str:
    """Strict JSON: numbers that are not finite, which JSON cannot hold, become the strings "inf", "-inf", "nan"."""
    return json.dumps(_json_safe(values), indent=indent, allow_nan=False) + "\n"


def _json_safe(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _json_safe(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_json_safe(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
