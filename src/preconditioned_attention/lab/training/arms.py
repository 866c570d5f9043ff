"""The arms that runs and comparisons know by name."""

from __future__ import annotations

from ...config import PreconditionConfig

ARMS: dict[str, PreconditionConfig | None] = {
    "plain": None,
    "row-full": PreconditionConfig(gradient="full"),
    "row-stop": PreconditionConfig(gradient="stop"),
}
"""``plain`` is the model as it is; the other two differ in the gradient alone."""
