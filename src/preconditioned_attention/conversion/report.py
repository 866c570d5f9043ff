"""`ConversionReport`: what a conversion did, module by module."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from .detection.runtime import detect_in_run, unlisted_attention
from .entry import ConversionEntry
from .verify import Verification, VerificationError, verify

_HEADER = ("path", "class", "mechanism", "heads", "head dim", "status", "reason")


@dataclass(frozen=True)
class ConversionReport:
    """Every attention module that was found, in the model's order; `print(report)` shows a table."""

    entries: tuple[ConversionEntry, ...]
    model: weakref.ref[nn.Module] | None = field(default=None, repr=False, compare=False)

    def verify(
        self, *example_inputs: Any, through: Callable[..., object] | None = None, **example_options: Any
    ) -> tuple[Verification, ...]:
        """Run the converted model and check that every preconditioner is called and returns unit rows (or zero rows).

        The model is run once more under a dispatch mode, to check that no module computes attention that the report
        does not list.

        Args:
            example_inputs, example_options: what the model is called with. The model runs twice, in the mode (train or
                eval) that it is in, without gradients; in training mode the first run may update batch statistics.
            through: what to call instead of the model: a compiled or wrapped form of it.

        Raises:
            VerificationError: a preconditioner was not called, or returned other rows, or a module computes attention
                and is not listed; the message lists which.
            ValueError: the model is gone, or has been restored.
        """
        model = self.model() if self.model is not None else None
        if model is None:
            raise ValueError("the model that this report is about is gone; keep it, and convert it again")
        found = {entry.path: _converted_in(model.get_submodule(entry.path)) for entry in self.converted}
        modules = {path: module for path, module in found.items() if module is not None}
        plain = found.keys() - modules.keys()
        if plain:
            names = ", ".join(repr(path) for path in found if path in plain)
            raise ValueError(f"not preconditioned any more: {names}; call precondition_(model)")
        results = verify(modules, model if through is None else through, example_inputs, example_options)
        self._check_that_all_is_listed(model, detect_in_run(model, example_inputs, example_options, through=through))
        return results

    def _check_that_all_is_listed(self, model: nn.Module, seen: Mapping[str, str]) -> None:
        unlisted = unlisted_attention(model, seen, self.entries)
        if unlisted:
            raise VerificationError(
                "attention that the report does not list was seen when the model ran; register an adapter for it, or "
                "register_composite if it is none:\n" + "\n".join(f"  {p}: {reason}" for p, reason in unlisted.items())
            )

    def __getstate__(self) -> dict[str, Any]:
        return {"entries": self.entries, "model": None}  # weak references cannot be pickled

    @property
    def converted(self) -> tuple[ConversionEntry, ...]:
        """The entries that were converted."""
        return tuple(entry for entry in self.entries if entry.status == "converted")

    @property
    def left_out(self) -> tuple[ConversionEntry, ...]:
        """The entries that are unsupported or unknown."""
        return tuple(entry for entry in self.entries if entry.status in ("unsupported", "unknown"))

    def __str__(self) -> str:
        rows = [_HEADER, *(entry.cells() for entry in self.entries)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.insert(1, "  ".join("-" * width for width in widths))
        lines.append(f"{len(self.converted)} of {len(self.entries)} attention modules converted.")
        if self.converted:
            lines.append("Not function-preserving: outputs differ from the unconverted model's; train from here.")
        return "\n".join(lines)


def _converted_in(module: nn.Module) -> nn.Module | None:
    """The converted attention that ``module`` is, or that a wrapper in its place contains."""
    return next((part for part in module.modules() if "preconditioner" in part._modules), None)
