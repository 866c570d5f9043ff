"""The plan of a comparison: arms, seeds, learning rates, checked before anything runs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..._checks import check_integer, check_number
from ..training.arms import Arm

REFERENCE = "plain"


@dataclass(frozen=True, order=True)
class RunKey:
    """One run of a comparison."""

    seed: int
    learning_rate: float
    arm: str

    @property
    def stem(self) -> str:
        """The name of the run's file, without its extension."""
        return f"{self.arm}-seed{self.seed}-lr{self.learning_rate!r}"


@dataclass(frozen=True)
class Plan:
    """A comparison, as data.

    Args:
        arms: name to arm; must include the reference, ``"plain"`` (None: the unchanged model).
        seeds: different whole numbers, at least 0; kept as a tuple.
        learning_rates: different positive numbers; kept as a tuple in ascending order.
        metric: the name of the metric that ``run`` reports.
        higher_is_better: whether more of it is better.
        settings: everything else that determines the runs: shown in the report, and compared when resumed.
        variants: for arms with another model, the options of the task that select it. Such an arm may have other
            initial weights. The reference cannot be one.
        baselines: the test metric of predictors without a model, by name (shown next to the results).

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it.
    """

    arms: Mapping[str, Arm | None]
    seeds: Sequence[int]
    learning_rates: Sequence[float]
    metric: str = "accuracy"
    higher_is_better: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    baselines: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_arms(self.arms)
        _check_variants(self.variants, self.arms)
        object.__setattr__(self, "seeds", tuple(_check_seeds(self.seeds)))
        object.__setattr__(self, "learning_rates", tuple(_check_learning_rates(self.learning_rates)))
        if not isinstance(self.metric, str) or not self.metric:
            raise TypeError(f"metric must be the metric's name, such as 'accuracy'; got {self.metric!r}")
        try:
            json.dumps(self.settings)
        except (TypeError, ValueError) as error:
            raise TypeError(f"settings must hold values that JSON can hold: {error}") from error

    @property
    def plain_settings(self) -> dict[str, Any]:
        """The settings as JSON reads them back."""
        settings: dict[str, Any] = json.loads(json.dumps(self.settings))
        return settings

    def run_keys(self) -> Iterator[RunKey]:
        """The runs in order, with arms innermost, so that other load on the machine affects every arm alike."""
        for seed in self.seeds:
            for learning_rate in self.learning_rates:
                for arm in self.arms:
                    yield RunKey(seed, learning_rate, arm)

    def describe(self, key: RunKey) -> dict[str, Any]:
        """Everything that determines the run ``key``, as plain values."""
        arm = self.arms[key.arm]
        variant = {"variant": dict(self.variants[key.arm])} if key.arm in self.variants else {}
        return {
            **variant,
            "arm": key.arm,
            "seed": key.seed,
            "learning_rate": key.learning_rate,
            "config": None if arm is None else arm.to_dict(),
            "metric": self.metric,
            "settings": self.plain_settings,
        }


def _check_arms(arms: object) -> None:
    if not isinstance(arms, Mapping):
        raise TypeError(f"arms must map names to an Arm, a PreconditionConfig or None; got {type(arms).__name__}")
    for name, arm in arms.items():
        # The name becomes part of a file name.
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", name):
            raise ValueError(f"arms: a name is made of letters, digits and '_.+-'; got {name!r}")
        if arm is not None and not isinstance(arm, Arm):
            raise TypeError(f"arms[{name!r}] must be an Arm, a PreconditionConfig or None; got {type(arm).__name__}")
    if REFERENCE not in arms or arms[REFERENCE] is not None:
        raise ValueError(f"arms must hold {REFERENCE!r}: None, what the others are measured against; got {[*arms]}")


def _check_variants(variants: Mapping[str, Mapping[str, Any]], arms: Mapping[str, Any]) -> None:
    unknown = [name for name in variants if name not in arms or name == REFERENCE]
    if unknown:
        raise ValueError(f"variants must be of arms other than {REFERENCE!r}; got {unknown} with arms {[*arms]}")


def _check_seeds(seeds: object) -> Sequence[int]:
    return [check_integer("seeds", seed, minimum=0) for seed in _check_distinct("seeds", seeds)]


def _check_learning_rates(learning_rates: object) -> Sequence[float]:
    values = _check_distinct("learning_rates", learning_rates)
    return sorted(check_number("learning_rates", rate, above=0.0) for rate in values)


def _check_distinct(name: str, values: object) -> Sequence[Any]:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TypeError(f"{name} must be a list of numbers; got {type(values).__name__}: {values!r}")
    if not values:
        raise ValueError(f"{name} must not be empty")
    if len(set(values)) < len(values):
        raise ValueError(f"{name} must be different from one another; got {list(values)}")
    return values
