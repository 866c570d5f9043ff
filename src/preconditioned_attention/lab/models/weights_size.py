"""Checks, before a model is made, that it can be made and that its weights fit the memory of this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ..data.image_files import one_line
from ..data.limits import check_memory

LARGEST_DEPTH = 1000


def build_on_meta(build: Callable[[], nn.Module], what: str) -> nn.Module:
    """The model that ``build`` makes, on the meta device, which takes no memory; random states stay as they are.

    Args:
        build: makes the model.
        what: the options and their values, for messages.

    Raises:
        ValueError: torch cannot make such a model, or its weights are larger than the memory of this machine.
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model = build()
    except RuntimeError as error:  # of sizes that no tensor can have
        raise ValueError(f"no model can be made of {what}: {one_line(error)}") from error
    sizes = (parameter.numel() * parameter.element_size() for parameter in model.parameters())
    check_memory(f"{what}: the weights of the model", sum(sizes))
    return model


def check_depth(options: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` if a number of layers among a model's options is one that nobody can mean.

    Args:
        options: those named ``depth``, ``depths`` or ``mask_layers`` are looked at.
    """
    for name in ("depth", "depths", "mask_layers"):
        value = options.get(name)
        numbers = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(number, int | float) and number > LARGEST_DEPTH for number in numbers):
            raise ValueError(f"{name} must be at most {LARGEST_DEPTH} layers; got {value!r}")
