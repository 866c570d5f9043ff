"""The arms of runs and comparisons, by name."""

from __future__ import annotations

from ...config import PreconditionConfig

ARMS: dict[str, PreconditionConfig | None] = {
    "plain": None,
    "row": PreconditionConfig(gradient="full"),
    "row-stopgrad": PreconditionConfig(gradient="stop"),
}
"""``plain`` is the model as it is; the other two differ in the gradient alone."""

FORMER_NAMES = {"row-full": "row", "row-stop": "row-stopgrad"}
"""What the files of earlier comparisons call two of the arms."""
