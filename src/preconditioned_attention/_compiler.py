"""Marks for torch.compile that do not import it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def assume_constant_result(function: Function) -> Function:
    """`torch.compiler.assume_constant_result`, which imports torch._dynamo (two seconds) to set this attribute."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def break_graph_at(function: Function, *, reason: str) -> Function:
    """Have torch.compile end its graph where it would inline ``function``, as if it were disabled.

    Dynamo looks for these two attributes, which `torch.compiler.disable` sets; unlike there the function may be
    compiled by itself.
    """
    function._torchdynamo_disable = True  # type: ignore[attr-defined]
    function._torchdynamo_disable_msg = reason  # type: ignore[attr-defined]
    return function
