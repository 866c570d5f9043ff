import functools
from collections.abc import Callable

import pytest
import torch
from torch import nn

from preconditioned_attention.conversion.source_texts.reachable_code import (
    function_digest,
    methods_digest,
    reachable_from,
)


def helper(x: float) -> float:
    return x


class Base(nn.Module):
    def forward(self, x: float) -> float:
        return self.helped(x)

    def helped(self, x: float) -> float:
        return helper(x)

    def unreached(self) -> None:
        """Not part of what forward runs."""


class Kept(Base):
    def unreached(self) -> None:
        raise AssertionError


class Helped(Base):
    def helped(self, x: float) -> float:
        return 2 * helper(x)


class Super(Base):
    def forward(self, x: float) -> float:
        return super().forward(x)


class Commented(nn.Module):
    def forward(self, x):
        """Annotations, comments and docstrings say nothing of what is computed."""
        # this neither
        return self.helped(x)

    @torch.no_grad()
    def helped(self, x):
        return helper(x)


def digest(cls: type) -> str | None:
    return methods_digest(reachable_from(cls))


def test_reaches_methods_functions_and_what_super_calls() -> None:
    reached = reachable_from(Super)
    assert [(method.holder, method.name) for method in reached.methods] == [
        (Super, "forward"),
        (Base, "forward"),
        (Base, "helped"),
    ]
    assert reached.functions == {("helper", helper)}
    assert reachable_from(nn.Linear).functions == set()


def test_the_digest_is_of_what_runs() -> None:
    assert digest(Kept) == digest(Base) == digest(Commented)
    assert len({digest(cls) for cls in (Base, Helped, Super)}) == 3


def wrapped(function: Callable) -> Callable:
    @functools.wraps(function)
    def wrapper(*args: object) -> object:
        return 2 * function(*args)

    return wrapper


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: 2 * x,
        wrapped(Base.forward),
        functools.partialmethod(Base.forward, 1.0),
        staticmethod(wrapped(Base.forward)),
        nn.Identity(),
    ],
    ids=["lambda", "functools.wraps", "partial method", "static", "callable object"],
)
def test_another_forward_has_another_digest(forward: object, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest(Base)
    monkeypatch.setattr(Base, "forward", forward)
    assert digest(Base) != before


def test_no_digest_without_a_source() -> None:
    space: dict[str, object] = {"nn": nn}
    exec("class Frozen(nn.Module):\n    def forward(self, x):\n        return x", space)
    assert digest(space["Frozen"]) is None


class Ones:
    def text(self, x: int, y: int = 1) -> str:
        return f"{x} {{}} {y!r:>{x}}"


class Twos:
    def text(self, x: int, y: int = 2) -> str:
        return f"{x} {{}} {y!r:>{x}}"


def test_the_digest_is_the_same_on_every_python() -> None:
    """Of format strings, too, which they parse into different trees; defaults count."""
    assert function_digest(Ones.text) == "17251f00170b"
    assert function_digest(Twos.text) != "17251f00170b"
