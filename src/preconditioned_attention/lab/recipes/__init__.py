"""Recipes: runs and comparisons as YAML files, found by name or path."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from ..._checks import check_integer, check_known, check_number, naming_source
from ..._files import read_text
from ..._yaml import parse_yaml
from ..training.arms import ARM_NAME, ARMS, Arm
from ..training.config import LARGEST_LEARNING_RATE, TrainConfig

__all__ = ["CompareSection", "Recipe", "load_recipe", "recipe_names"]


@dataclass(frozen=True, kw_only=True)
class CompareSection:
    """Options of the recipe's comparison.

    Args:
        seeds: one run per seed; differences are paired by seed.
        learning_rates: the grid; each arm's is chosen on the validation split.
        arms: what is compared, in this order, if not the usual arms.
        variants: for arms whose model is another one, the options of the task that make it so; a name that is not
            among the arms is one more arm, without preconditioning.

    Raises:
        TypeError, ValueError: a list is empty, holds a value twice, or a value that cannot be.
    """

    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...]
    arms: Mapping[str, Arm | None] = field(default_factory=lambda: dict(ARMS))
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        seeds = _distinct("seeds", self.seeds)
        rates = _distinct("learning_rates", self.learning_rates)
        object.__setattr__(self, "seeds", tuple(check_integer("seeds", seed, minimum=0) for seed in seeds))
        object.__setattr__(self, "learning_rates", tuple(_check_rate(rate) for rate in rates))
        for key in ("arms", "variants"):
            _check_arm_names(key, getattr(self, key))
        for name, options in self.variants.items():
            if not isinstance(options, Mapping):
                raise TypeError(f"variants: {name!r} must have options of the task; got {options!r}")
        object.__setattr__(
            self, "arms", {**self.arms, **{name: None for name in self.variants if name not in self.arms}}
        )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A named run, and the options of its comparison."""

    name: str
    train: TrainConfig
    compare: CompareSection


def recipe_names() -> list[str]:
    """The names of the recipes that come with the package; those in a folder are called ``folder/name``."""
    names = []
    for entry in resources.files(__name__).iterdir():
        if entry.is_dir():
            names += [f"{entry.name}/{file.name}" for file in entry.iterdir()]
        else:
            names.append(entry.name)
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def load_recipe(name: str | Path) -> Recipe:
    """Load a recipe by its name, or from a YAML file of your own.

    Args:
        name: one of :func:`recipe_names`, or one with hyphens for its slash, or the last part of one if no other ends
            in it, or the path of a file that ends in ``.yaml`` or ``.yml``.

    Raises:
        ValueError, TypeError: no recipe has that name, or the file holds something else than a recipe.
        OSError: the file cannot be read.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return _parse(path.stem, read_text(path, kind="recipe file"), source=str(path))
    meant = [known for known in recipe_names() if known.endswith(f"/{name}") or known.replace("/", "-") == str(name)]
    if str(name) not in recipe_names() and len(meant) == 1:
        (name,) = meant
    if str(name) not in recipe_names():
        raise ValueError(
            f"unknown recipe {str(name)!r}; known: {', '.join(recipe_names())}, or the path of a .yaml file"
        )
    text = resources.files(__name__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    return _parse(str(name), text, source=f"recipe {name!r}")


def _parse(name: str, text: str, *, source: str) -> Recipe:
    sections = parse_yaml(text, source=source)
    check_known(f"section of {source}:", sections, ["train", "compare"])
    train, compare = (_section(sections, key, source) for key in ("train", "compare"))
    known = [field.name for field in dataclasses.fields(CompareSection)]
    check_known(f"option in section 'compare' of {source}:", compare, known)
    missing = [key for key in ("seeds", "learning_rates") if key not in compare]
    if missing:
        raise ValueError(f"section 'compare' of {source} lacks {', '.join(missing)}")
    with naming_source(source):
        return Recipe(name=name, train=TrainConfig.from_dict(train), compare=CompareSection(**_with_arms(compare)))


def _with_arms(compare: dict[str, Any]) -> dict[str, Any]:
    """The section with an :class:`Arm` for the options of each arm."""
    arms = compare.get("arms")
    if not isinstance(arms, dict):
        return compare
    for arm, options in arms.items():
        if not (options is None or isinstance(options, dict)):
            raise TypeError(f"arms: {arm!r} must have options, such as {{gradient: full}}, or null; got {options!r}")
    return {
        **compare,
        "arms": {arm: None if options is None else Arm.from_dict(options) for arm, options in arms.items()},
    }


def _section(sections: dict[str, Any], key: str, source: str) -> dict[str, Any]:
    section = sections.get(key)
    if not isinstance(section, dict):
        raise ValueError(f"{source} must have a section {key!r} with its options; got {section!r}")
    return section


def _check_arm_names(key: str, arms: object) -> None:
    """Raise if ``arms`` is no mapping, or a name could not be a part of the name of a file."""
    if not isinstance(arms, Mapping):
        raise TypeError(f"{key} must map names of arms to their options; got {arms!r}")
    for name in arms:
        if not isinstance(name, str) or not ARM_NAME.fullmatch(name):
            raise ValueError(f"{key}: a name is made of letters, digits and '_.+-'; got {name!r}")


def _check_rate(rate: object) -> float:
    return check_number("learning_rates", rate, above=0.0, maximum=LARGEST_LEARNING_RATE)


def _distinct(name: str, values: object) -> list[Any]:
    if not isinstance(values, list | tuple) or not values:
        raise TypeError(f"{name} must be a list with at least one value; got {values!r}")
    if any(values[index] in values[:index] for index in range(len(values))):
        raise ValueError(f"{name} must not hold a value twice; got {list(values)!r}")
    return list(values)
