"""Which recipe the commands ``train`` and ``compare`` are asked for."""

from __future__ import annotations

import dataclasses

from .._yaml import parse_yaml
from ..recipes import Recipe, load_recipe


def choose_recipe(recipe: str, *, model: str | None, task_options: tuple[str, ...]) -> Recipe:
    """The recipe, with options of its task replaced.

    Args:
        recipe: a name, or the path of a YAML file.
        model: picks ``recipe/model``.
        task_options: ``NAME=VALUE`` each, the value in YAML; they replace the recipe's.

    Raises:
        ValueError: no recipe has that name, or a task option has another form.
    """
    loaded = load_recipe(recipe if model is None else f"{recipe}/{model}")
    replaced = dict(map(_parse, task_options))
    options = {**loaded.train.task_options, **replaced}
    return dataclasses.replace(loaded, train=dataclasses.replace(loaded.train, task_options=options))


def folder_name(recipe: Recipe) -> str:
    """The recipe's name, fit for the name of one folder."""
    return recipe.name.replace("/", "-")


def _parse(text: str) -> tuple[str, object]:
    name, separator, value = text.partition("=")
    if not (name and separator):
        raise ValueError(f"a task option must be NAME=VALUE, such as root=/data/imagenet; got {text!r}")
    return name, parse_yaml(f"value: {value}", source=f"task option {text!r}")["value"]
