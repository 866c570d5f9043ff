"""``comparison.json``: the plan of a comparison as data, and what two plans of one folder may differ in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..._checks import check_known
from ..training.arms import Arm
from .plan import Plan
from .read_json import FORMAT, check_entry, read_object


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


def plan_from_dict(values: dict[str, Any]) -> Plan:
    """The inverse of :func:`plan_to_dict`, without the title.

    Raises:
        ValueError, TypeError: an entry is missing or cannot be one of a plan; the message names it.
    """
    for name, kinds in _KINDS.items():
        check_entry(values, name, kinds)
    check_known("entry", values, [*_KINDS, "format"])
    for name in ("variants", "baselines"):
        for entry in values[name]:
            check_entry(values[name], entry, dict if name == "variants" else (float, int))
    arms = {name: None if options is None else Arm.from_dict(options) for name, options in values["arms"].items()}
    names = ("metric", "higher_is_better", "settings", "variants", "baselines", "seeds", "learning_rates")
    return Plan(arms=arms, **{name: values[name] for name in names})


_KINDS: dict[str, type] = {
    "title": str,
    "metric": str,
    "higher_is_better": bool,
    "seeds": list,
    "learning_rates": list,
    "arms": dict,
    "settings": dict,
    "variants": dict,
    "baselines": dict,
}


def read_plan(path: Path) -> tuple[Plan, str]:
    """The plan in a ``comparison.json``, and the title.

    Raises:
        ValueError: the file is not one that :func:`plan_to_dict` describes. OSError: it cannot be read.
    """
    what = "the plan of a comparison"
    values = read_object(path, what)
    try:
        return plan_from_dict(values), values["title"]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not {what} ({error}); remove it, and it is written anew") from error


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
