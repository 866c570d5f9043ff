"""diffusers' processors, which compute attention for its attention modules: which are supported, and why others not."""

from __future__ import annotations

import functools
from types import FunctionType
from typing import Any

import torch

from ...class_names import class_name
from ...source_texts.known_texts import is_reviewed, reviewed_versions
from .tables import KNOWN_PROCESSORS
from .unsupported import UNSUPPORTED_PROCESSORS


def unsupported_processor_reason(processor: object) -> str | None:
    """Why modules with this processor cannot be converted, or None."""
    cls: Any = type(processor)  # mypy does not take a class as hashable
    name = class_name(cls)
    if name in KNOWN_PROCESSORS:
        if torch.compiler.is_compiling() or _is_read(cls, cls.__call__):
            return None  # the text was compared in the pass before compilation
        return f"its processor {name}: its source text is not one that was read in {reviewed_versions('diffusers')}"
    if name in UNSUPPORTED_PROCESSORS:
        return f"its processor {name}: {UNSUPPORTED_PROCESSORS[name]}"
    return (
        f"its processor {name} is not known to call the output projections with the heads of one attention and nothing "
        "else"
    )


@functools.lru_cache(maxsize=1024)
def _is_read(cls: Any, call: Any) -> bool:
    """Whether the processor's source text is known; cached per ``call``, as it is checked at every forward pass."""
    return is_reviewed(cls, cls, "__call__")


def is_processor(cls: type) -> bool:
    """Whether ``cls`` computes attention for the module that it is called with."""
    call = vars(cls).get("__call__")
    return isinstance(call, FunctionType) and call.__code__.co_varnames[:2] == ("self", "attn")
