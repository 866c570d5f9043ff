"""The metrics of one run."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..._checks import check_known
from ..reporting import Picture

# Per attention layer: condition number and spread of row norms, before and after C.
CONDITIONING_KEYS = ("layer", "kappa_before", "kappa_after", "spread_before", "spread_after")
MOMENTS = ("initialization", "end")
FORMER_MOMENTS = {"initialisation": "initialization"}  # in the files of earlier comparisons
DURING = "training"  # recorded between these two, where the run was monitored


SAMPLES = "samples"  # the key in ``extra`` of generated texts, by prompt


@dataclass(frozen=True, kw_only=True)
class RunMetrics:
    """The numbers of one finished run.

    Args:
        validation: the metric on validation data, by which the learning rate is chosen.
        test: the metric on test data, which is reported only.
        losses: the training loss of every optimizer step, in order; may be empty.
        seconds_per_step: time of one optimizer step; None if it was not measured.
        evaluations: the metric during training, one mapping with ``"step"`` and the metric's name per evaluation.
        conditioning: one mapping per attention layer with the keys ``layer``, ``kappa_before``, ``kappa_after``,
            ``spread_before``, ``spread_after`` (what ``ConditionMonitor.summary()`` returns) and optionally
            ``moment``: ``"initialization"``, ``"end"`` (the default), or ``"training"``, then with ``step``. kappa may
            be infinite.
        extra: other values that JSON can hold; it is kept in ``runs.json.gz``.
        pictures: of the model's outputs, by name; the report shows those of every arm's first seed side by side.
    """

    validation: float
    test: float
    losses: Sequence[float] = ()
    seconds_per_step: float | None = None
    evaluations: Sequence[Mapping[str, Any]] = ()
    conditioning: Sequence[Mapping[str, Any]] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    pictures: Mapping[str, Picture] = field(default_factory=dict)

    @classmethod
    def from_returned(cls, returned: object, *, metric: str | None) -> RunMetrics:
        """Check and convert what ``run`` returned; unknown keys of a mapping go to ``extra``.

        Raises:
            TypeError, ValueError: a value is missing or invalid; the message names it.
        """
        if isinstance(returned, RunMetrics):
            values = {entry.name: getattr(returned, entry.name) for entry in dataclasses.fields(cls)}
        elif isinstance(returned, Mapping):
            values = dict(returned)
        else:
            raise TypeError(f"run must return RunMetrics or a mapping; got {type(returned).__name__}")
        known = {entry.name for entry in dataclasses.fields(cls)}
        given = values.pop("extra", {})
        if not isinstance(given, Mapping):
            raise TypeError(f"extra must be a mapping; got {type(given).__name__}")
        extra = {**given, **{key: values.pop(key) for key in [*values] if key not in known}}
        missing = [name for name in ("validation", "test") if name not in values]
        if missing:
            raise ValueError(f"run must return 'validation' and 'test'; missing: {', '.join(missing)}")
        seconds = values.get("seconds_per_step")
        if seconds is not None and _number("seconds_per_step", seconds) <= 0:
            raise ValueError(f"seconds_per_step must be positive, or None if it was not measured; got {seconds!r}")
        return cls(
            validation=_number("validation", values["validation"]),
            test=_number("test", values["test"]),
            losses=[_number("losses", loss) for loss in _sequence("losses", values.get("losses", ()))],
            seconds_per_step=None if seconds is None else _number("seconds_per_step", seconds),
            evaluations=_check_evaluations(values.get("evaluations", ()), metric),
            conditioning=_check_conditioning(values.get("conditioning", ())),
            extra=_check_json("extra", extra),
            pictures=_check_pictures(values.get("pictures", {})),
        )

    def not_finite(self) -> str | None:
        """A message that names the first metric that is not finite; None if all are."""
        for name in ("validation", "test", "seconds_per_step"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                return f"{name} is {value}"
        for step, loss in enumerate(self.losses, start=1):
            if not math.isfinite(loss):
                return f"the training loss is {loss} at step {step}"
        return None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        pictures = {name: picture.to_dict() for name, picture in self.pictures.items()}
        return {**dataclasses.asdict(dataclasses.replace(self, pictures={})), "pictures": pictures}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, metric: str | None = None) -> RunMetrics:
        """The inverse of :meth:`to_dict`; also of what earlier versions wrote.

        Args:
            values: the plain values.
            metric: what each of the evaluations must hold; None: whatever they hold.

        Raises:
            TypeError, ValueError: a value is missing, unknown or invalid; the message names it.
        """
        check_known("metric of a run", values, [entry.name for entry in dataclasses.fields(cls)])
        pictures = values.get("pictures", {})
        if not isinstance(pictures, Mapping):
            raise TypeError(f"pictures must map names to pictures; got {pictures!r}")
        conditioning = [_update_moment(row) for row in _sequence("conditioning", values.get("conditioning", ()))]
        restored = {
            "pictures": {name: _restore_picture(name, picture) for name, picture in pictures.items()},
            "conditioning": [_restore_numbers(row) for row in conditioning],
            "losses": [_restore_number(loss) for loss in _sequence("losses", values.get("losses", ()))],
        }
        return cls.from_returned({**_restore_numbers(values), **restored}, metric=metric)


def _restore_numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _restore_number(value) for name, value in values.items()}


def _restore_number(value: Any) -> Any:
    """A number that is not finite from the text that stands for it in JSON; anything else as it is."""
    return float(value) if isinstance(value, str) and value in ("inf", "-inf", "nan") else value


def _restore_picture(name: str, values: object) -> Picture:
    try:
        return Picture.from_dict(values)  # type: ignore[arg-type]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"picture {name!r} is not one that was written here ({error!r})") from error


def _update_moment(row: object) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise TypeError(f"each of conditioning must be a mapping; got {row!r}")
    moment = row.get("moment", "end")
    return {**row, "moment": FORMER_MOMENTS.get(moment, moment) if isinstance(moment, str) else moment}


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number, such as metrics['accuracy']; got {type(value).__name__}: {value!r}")
    return float(value)


def _sequence(name: str, value: object) -> Sequence[Any]:
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
        raise TypeError(f"{name} must be a list; got {type(value).__name__}")
    return value


def _check_evaluations(evaluations: object, metric: str | None) -> list[dict[str, Any]]:
    rows = []
    names = ["step"] if metric is None else ["step", metric]
    for row in _sequence("evaluations", evaluations):
        if not isinstance(row, Mapping) or any(name not in row for name in names):
            raise ValueError(
                f"each of evaluations must be a mapping with {' and '.join(map(repr, names))}; got {row!r}"
            )
        numbers = {name: _number(f"evaluations[{name!r}]", row[name]) for name in names[1:]}
        rows.append({**_check_json("evaluations", row), **numbers})
    return rows


def _check_conditioning(conditioning: object) -> list[dict[str, Any]]:
    rows = []
    for row in _sequence("conditioning", conditioning):
        if not isinstance(row, Mapping) or any(key not in row for key in CONDITIONING_KEYS):
            raise ValueError(f"each of conditioning must be a mapping with {', '.join(CONDITIONING_KEYS)}; got {row!r}")
        moment = row.get("moment", "end")
        if moment not in (*MOMENTS, DURING):
            raise ValueError(f"conditioning: moment must be one of {', '.join((*MOMENTS, DURING))}; got {moment!r}")
        if moment == DURING and "step" not in row:
            raise ValueError(f"each of conditioning with moment {DURING!r} must have a 'step'; got {row!r}")
        numbers = {key: _number(key, row[key]) for key in CONDITIONING_KEYS[1:]}
        rows.append({**_check_json("conditioning", row), **numbers, "layer": str(row["layer"]), "moment": moment})
    return rows


def _check_pictures(pictures: object) -> dict[str, Picture]:
    if not isinstance(pictures, Mapping) or not all(isinstance(one, Picture) for one in pictures.values()):
        raise TypeError(f"pictures must be a mapping from names to reporting.Picture; got {pictures!r}")
    return dict(pictures)


def _check_json(name: str, value: Mapping[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: every value must be one that JSON can hold ({error}); leave it out") from error
    return dict(value)
