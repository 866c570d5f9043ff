"""``comparison.json``: the plan of a comparison as data, and what two plans of one folder may differ in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..training.arms import Arm
from .plan import Plan

FORMAT = 1
"""Of ``comparison.json`` and ``run.json``; a version that changes their meaning counts it up."""


def plan_to_dict(plan: Plan, title: str) -> dict[str, Any]:
    """Plain values for JSON."""
    return {
        "format": FORMAT,
        "title": title,
        "metric": plan.metric,
        "higher_is_better": plan.higher_is_better,
        "seeds": list(plan.seeds),
        "learning_rates": list(plan.learning_rates),
        "arms": {name: None if arm is None else arm.to_dict() for name, arm in plan.arms.items()},
        "settings": plan.plain_settings,
        "variants": {name: dict(options) for name, options in plan.variants.items()},
        "baselines": dict(plan.baselines),
    }


def plan_from_dict(values: Mapping[str, Any]) -> Plan:
    """The inverse of :func:`plan_to_dict`, without the title.

    Raises:
        ValueError, TypeError, KeyError: the values are not those of a plan.
    """
    arms = {name: None if options is None else Arm.from_dict(options) for name, options in values["arms"].items()}
    names = ("metric", "higher_is_better", "settings", "variants", "baselines", "seeds", "learning_rates")
    return Plan(arms=arms, **{name: values[name] for name in names})


def read_plan(path: Path) -> Plan:
    """The plan in a ``comparison.json``.

    Raises:
        ValueError: the file is not one that :func:`plan_to_dict` describes. OSError: it cannot be read.
    """
    try:
        return plan_from_dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is not the plan of a comparison ({error}); remove it, and it is written anew"
        ) from error


def differences(former: Plan, plan: Plan) -> list[str]:
    """What would make runs of the two plans incomparable, in words; seeds, rates and further arms may differ."""
    words = []
    for name in ("metric", "higher_is_better"):
        if getattr(former, name) != getattr(plan, name):
            words.append(f"{name} was {getattr(former, name)!r}, is {getattr(plan, name)!r}")
    words += _differing("setting", former.plain_settings, plan.plain_settings)
    both = [name for name in former.arms if name in plan.arms]
    words += _differing("arm", *({name: _options(one, name) for name in both} for one in (former, plan)))
    return words


def _options(plan: Plan, name: str) -> dict[str, Any]:
    arm = plan.arms[name]
    return {"config": None if arm is None else arm.to_dict(), "variant": dict(plan.variants.get(name, {}))}


def _differing(what: str, former: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    names = [name for name in {**former, **now} if former.get(name) != now.get(name)]
    return [f"{what} {name} was {former.get(name)!r}, is {now.get(name)!r}" for name in names]
