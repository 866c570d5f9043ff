"""`ConversionEntry`: one attention module in a report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["converted", "skipped", "unsupported", "unknown"]


@dataclass(frozen=True, kw_only=True)
class ConversionEntry:
    """One attention module.

    Args:
        path: its name in the model.
        class_name: its class, as it was before the conversion.
        mechanism: how it was or would be converted; None if it has no adapter.
        num_heads, head_dim: of its output; None where they cannot be read off the module.
        status: ``"converted"``; ``"skipped"`` by ``include`` or ``filter_fn``; ``"unsupported"``: it has an adapter,
            which cannot convert it; ``"unknown"``: it seems to compute attention and no adapter is registered for it.
        reason: why it was not converted; if it was, what counts as a head's output where that is a choice.
    """

    path: str
    class_name: str
    mechanism: str | None
    num_heads: int | None
    head_dim: int | None
    status: Status
    reason: str = ""

    def cells(self) -> tuple[str, ...]:
        """The entry as a row of the printed table."""
        optional = ("-" if value is None else str(value) for value in (self.mechanism, self.num_heads, self.head_dim))
        return self.path or "(the model itself)", self.class_name, *optional, self.status, self.reason
