"""The recipe and the arms named by the arguments of ``train`` and ``compare``."""

from __future__ import annotations

import dataclasses

from .._checks import check_known, naming_source
from .._yaml import parse_yaml
from ..lab.recipes import Recipe, load_recipe
from ..lab.tasks import make_task
from ..lab.training import ARMS, Arm


def choose_recipe(
    recipe: str, *, model: str | None, task_options: tuple[str, ...], preset: str | None = None
) -> Recipe:
    """The recipe, with options of its task replaced.

    Args:
        recipe: a name, or the path of a YAML file.
        model: picks ``recipe/model``.
        preset: picks ``recipe-preset``.
        task_options: ``NAME=VALUE`` each, the value in YAML; they replace the recipe's.

    Raises:
        ValueError, TypeError: no recipe has that name, a task option is not NAME=VALUE or is given twice, or the
            task has no such option; the message names the recipe.
        OSError: the file cannot be read.
    """
    name = recipe if model is None else f"{recipe}/{model}"
    name = name if preset is None else f"{name}-{preset}"
    loaded = load_recipe(name)
    options = {**loaded.train.task_options, **_given(task_options)}
    with naming_source(name):
        for variant in ({}, *loaded.compare.variants.values()):
            make_task(loaded.train.task, {**options, **variant})
    return dataclasses.replace(loaded, train=dataclasses.replace(loaded.train, task_options=options))


def choose_arms(recipe: Recipe, names: tuple[str, ...] | None) -> dict[str, Arm | None]:
    """The arms of these names, of the recipe or the default ones; all of the recipe's if ``names`` is None.

    Raises:
        ValueError: there is no such arm.
    """
    known = {**ARMS, **recipe.compare.arms}
    check_known("arm", names or (), known)
    if names is not None and len(set(names)) < len(names):
        raise ValueError(f"arms must be different from one another; got {' '.join(names)}")
    return {name: known[name] for name in (recipe.compare.arms if names is None else names)}


def folder_name(recipe: Recipe) -> str:
    """The recipe's name without slashes, for the name of a folder."""
    return recipe.name.replace("/", "-")


def _given(texts: tuple[str, ...]) -> dict[str, object]:
    """The options that are given on the command line."""
    options: dict[str, object] = {}
    for name, value in map(_parse, texts):
        if name in options:
            raise ValueError(f"task option {name!r} is given twice: {options[name]!r} and {value!r}; give it once")
        options[name] = value
    return options


def _parse(text: str) -> tuple[str, object]:
    name, separator, value = text.partition("=")
    if not (name and separator):
        raise ValueError(f"a task option must be NAME=VALUE, such as root=/data/imagenet; got {text!r}")
    if "\n" in value:
        raise ValueError(f"a task option must be one line of YAML; got {text!r}")
    return name, parse_yaml(f"value: {value}", source=f"task option {text!r}")["value"]
