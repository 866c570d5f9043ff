"""`AdapterCheck`: the result of `check_adapter`."""

from __future__ import annotations

from dataclasses import dataclass

from ..entry import ConversionEntry


@dataclass(frozen=True, kw_only=True)
class CheckedAttention:
    """What was checked of one attention module.

    Args:
        path, class_name, mechanism, num_heads, head_dim: as in the report of the conversion.
        rows: how many rows its preconditioner was given, without zero rows.
        unproven: what could not be checked, and why.
    """

    path: str
    class_name: str
    mechanism: str | None
    num_heads: int | None
    head_dim: int | None
    rows: int
    unproven: tuple[str, ...]

    def __str__(self) -> str:
        sizes = [f"{name} {value}" for name, value in (("heads", self.num_heads), ("width", self.head_dim)) if value]
        lines = [f"{self.path or '(the model itself)'}: {self.class_name}, {', '.join([*sizes, f'{self.rows} rows'])}"]
        return "\n".join(lines + [f"    not proven: {what}" for what in self.unproven])


@dataclass(frozen=True)
class AdapterCheck:
    """The result of :func:`check_adapter`; `print` shows it.

    Args:
        attentions: one entry for each attention that is converted.
        left_out: attention that is not converted, from the report or from a run of the model.
    """

    attentions: tuple[CheckedAttention, ...]
    left_out: tuple[ConversionEntry, ...]

    @property
    def complete(self) -> bool:
        """Whether everything could be checked and no attention is left out."""
        return not (self.left_out or any(attention.unproven for attention in self.attentions))

    def __str__(self) -> str:
        verdict = "proven" if self.complete else "proven, but for what is listed as not proven or not converted"
        left_out = (
            f"{e.path or '(the model itself)'}: {e.class_name}\n    not converted: {e.reason}" for e in self.left_out
        )
        return "\n".join(
            [
                *map(str, self.attentions),
                *left_out,
                f"{verdict}: every attachment fires, on the rows that attention computes; unit rows leave it, in the "
                "direction they had; the scale of a head's values changes nothing; gradients are finite; restore_ "
                "brings the model back.",
            ]
        )
