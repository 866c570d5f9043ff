"""`Adapter`: the base class of what converts one kind of attention module."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ..layers import Preconditioner
from ..selection import Kind
from .source_texts.reachable_code import reachable_from
from .unsupported import UnsupportedClass


@dataclass(frozen=True)
class HeadShape:
    """The number of heads and the width of a head's output; None where they cannot be read off the module."""

    num_heads: int | None
    head_dim: int | None


def read_int(source: object, *names: str) -> int | None:
    """The first of ``source``'s attributes ``names`` that is an integer, or None."""
    values = (getattr(source, name, None) for name in names)
    return next((value for value in values if isinstance(value, int)), None)


class Adapter(ABC):
    """How a :class:`Preconditioner` is attached to one kind of attention module, and detached again.

    An adapter has no state per module: one instance is used for every module. `attach` may register hooks or swap the
    class of the instance; `detach` undoes that bit for bit.
    """

    kind: Kind = "softmax"
    mechanism: ClassVar[str]
    value_skip: bool = False  # whether it adds a skip to its output, before or after which `config.placement` puts C
    honors_backend: bool = False  # whether `Preconditioner.attend` computes it, by config.backend
    parts: tuple[str, ...] = ()  # paths inside it that belong to it and are not listed on their own
    definition: str = ""  # what counts as a head's output, where that is a choice of ours

    def supports(self, cls: type[nn.Module], registered: type[nn.Module]) -> bool:
        """Whether ``cls``, which is ``registered`` or derives from it, runs the forward that this adapter converts.

        No method that the forward reaches may be overridden by ``cls``.
        """
        return cls is registered or _methods_run(cls) == _methods_run(registered)

    def unsupported_reason(self, module: nn.Module) -> str | None:
        """Why this module cannot be converted, or None."""
        return None

    @abstractmethod
    def shape(self, module: nn.Module) -> HeadShape:
        """The module's number of heads and the width of a head's output."""

    @abstractmethod
    def attach(self, module: nn.Module, preconditioner: Preconditioner) -> None:
        """Make ``module`` call ``preconditioner``, which is its child already, on every head's output."""

    @abstractmethod
    def detach(self, module: nn.Module) -> None:
        """Undo :meth:`attach`."""


def _methods_run(cls: type[nn.Module]) -> set[tuple[type, str]]:
    return {(method.holder, method.name) for method in reachable_from(cls).methods}


class UnsupportedAdapter(Adapter):
    """An attention class that is recognized and cannot be converted."""

    mechanism = "none"

    def __init__(self, entry: UnsupportedClass) -> None:
        self.reason, self.kind = entry

    def unsupported_reason(self, module: nn.Module) -> str:
        """The reason."""
        return self.reason

    def shape(self, module: nn.Module) -> HeadShape:
        """Unknown."""
        return HeadShape(None, None)

    def attach(self, module: nn.Module, preconditioner: Preconditioner) -> None:
        """Never called: the module is not converted."""
        raise AssertionError("a refused module must not be converted")

    def detach(self, module: nn.Module) -> None:
        """Never called."""
        raise AssertionError("a refused module was never converted")
