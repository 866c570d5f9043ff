"""Attention classes that are recognized and cannot be converted: one table over all libraries."""

from __future__ import annotations

import functools
import importlib
from typing import NamedTuple

from ..selection import Kind

_LIBRARIES = ("diffusers", "timm", "transformers", "x_transformers")


class UnsupportedClass(NamedTuple):
    """Why a class cannot be converted, and what kind of attention it is."""

    reason: str
    kind: Kind = "other"


@functools.cache
def unsupported_classes() -> dict[str, UnsupportedClass]:
    """Qualified class name -> reason, for every library; imports none of them."""
    files = (importlib.import_module(f".adapters.{library}.unsupported", __package__) for library in _LIBRARIES)
    return {name: entry for file in files for name, entry in file.UNSUPPORTED.items()}
