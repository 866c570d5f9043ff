"""Rejection of options that another option makes useless: they would be ignored without a word."""

from __future__ import annotations

import dataclasses
from typing import Any


def check_unused(task: Any, *names: str, reason: str) -> None:
    """Raise ``ValueError`` if one of the task's options ``names`` does not have its default; ``reason`` says why.

    Args:
        task: a dataclass.
        names: options with defaults.
        reason: why they have no effect, in words that go into the message.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(task)}
    given = [f"{name}={getattr(task, name)!r}" for name in names if getattr(task, name) != defaults[name]]
    if given:
        raise ValueError(
            f"{', '.join(given)} would have no effect ({reason}); leave it out, or change the other option"
        )
