"""`Arm`, how a run converts its model, and the named arms of runs and comparisons."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ...config import PreconditionConfig
from ...conversion import precondition_
from ...selection import DEFAULT_INCLUDE, AttentionKind, check_include, join_options, split_options


@dataclass(frozen=True)
class Arm:
    """How a run converts its model.

    Args:
        config: the options of the method.
        include: the kinds of attention, as :func:`precondition_` takes them.

    Raises:
        TypeError, ValueError: an argument has a value it cannot have.
    """

    config: PreconditionConfig = field(default_factory=PreconditionConfig)
    include: tuple[AttentionKind, ...] = DEFAULT_INCLUDE

    def __post_init__(self) -> None:
        if not isinstance(self.config, PreconditionConfig):
            raise TypeError(f"an arm's config must be a PreconditionConfig; got {self.config!r}")
        object.__setattr__(self, "include", check_include(self.include))

    def apply(self, model: nn.Module) -> None:
        """Convert ``model`` in place."""
        precondition_(model, self.config, include=self.include)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON or YAML: the options of the config, with ``"include"`` beside them."""
        return join_options(self.config, self.include)

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> Arm:
        """The inverse of :meth:`to_dict`; also reads what was saved when `PreconditionConfig` held the selection."""
        return cls(*split_options(options))


ARM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
"""What an arm may be called: the name becomes a part of the names of files."""

ARMS: dict[str, Arm | None] = {
    "plain": None,
    "row": Arm(PreconditionConfig(gradient="full")),
    "row-stopgrad": Arm(PreconditionConfig(gradient="stop")),
}
"""``plain`` is the model as it is; the other two differ in the gradient alone."""

FORMER_NAMES = {"row-full": "row", "row-stop": "row-stopgrad"}
"""What the files of earlier comparisons call two of the arms."""
