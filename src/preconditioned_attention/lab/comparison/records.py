"""The runs of a comparison: one file each, written atomically when the run ends, so that a comparison can resume."""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..._files import write_atomically
from ..training.arms import FORMER_NAMES, Arm
from ..training.former_options import update_options
from .folder import written_files
from .metrics import RunMetrics
from .plan import Plan, RunKey


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
        seconds: how long the run took.
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

    @property
    def finished(self) -> bool:
        """Whether the run reported finite metrics."""
        return self.status == "finished"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        names = ("description", "status", "reason", "traceback", "weights", "random_states", "seconds")
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


def _update_description(description: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """The description of a run that an earlier version wrote, with today's names and options.

    Arms and settings that ``plan`` has as they are stay as they are.
    """
    arm, config, settings = (description[name] for name in ("arm", "config", "settings"))
    return {
        **description,
        "arm": arm if arm in plan.arms else FORMER_NAMES.get(arm, arm),
        "config": None if config is None else Arm.from_dict(config).to_dict(),
        "settings": settings if settings == plan.plain_settings else update_options(settings),
    }


class RunStore:
    """The runs in the output folder.

    Args:
        output: the folder; created if it does not exist.
        plan: what is compared.
        resume: keep the finished runs of the same comparison.
        overwrite: remove the results in the folder.

    Raises:
        FileExistsError: the folder holds results and neither ``resume`` nor ``overwrite`` was given, or it holds
            runs of another comparison. No file was changed.
        OSError: the folder cannot be written to.
        ValueError: both ``resume`` and ``overwrite``, or a run's file that cannot be read.
    """

    def __init__(self, output: Path, plan: Plan, *, resume: bool, overwrite: bool) -> None:
        if resume and overwrite:
            raise ValueError("resume keeps what the folder holds and overwrite removes it: give one of them")
        self.output = output
        self.runs = output / "runs"
        self._check_writable()
        found = self._files()
        if found and not (resume or overwrite):
            raise FileExistsError(
                f"output: {output} holds results already ({found[0].name}); "
                "resume=True continues them, overwrite=True removes them, another folder keeps them"
            )
        if overwrite:
            for path in found:
                path.unlink()
        self.records: dict[RunKey, RunRecord] = {}
        for path in sorted(self.runs.glob("*.json")):
            record = self._read(path, plan)
            if record.key in self.records and path.stem != record.key.stem:
                continue  # a failed run under the former name of its arm; the other file is its repetition
            if record.key not in plan.run_keys() or record.description != plan.describe(record.key):
                raise FileExistsError(
                    f"output: {path} belongs to another comparison (other arms, seeds, learning rates or settings); "
                    "choose another folder, or overwrite=True to remove what this one holds"
                )
            self.records[record.key] = record

    def _check_writable(self) -> None:
        try:
            self.runs.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.output), tempfile.TemporaryFile(dir=self.runs):
                pass
        except OSError as error:
            raise type(error)(
                error.errno, f"output: cannot write to this folder ({error.strerror}); choose another", str(self.output)
            ) from error

    def _files(self) -> list[Path]:
        """Every file of a comparison in the folder."""
        return [*written_files(self.output), *sorted(self.runs.glob("*.json"))]

    @staticmethod
    def _read(path: Path, plan: Plan) -> RunRecord:
        try:
            values = json.loads(path.read_bytes())
            return RunRecord.from_dict({**values, "description": _update_description(values["description"], plan)})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"output: {path} is not a run of a comparison ({error!r}); remove it") from error

    def write(self, record: RunRecord) -> None:
        """Write ``record`` to its file and keep it."""
        write_atomically(self.runs / f"{record.key.stem}.json", to_json(record.to_dict()))
        self.records[record.key] = record
