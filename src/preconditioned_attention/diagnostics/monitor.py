"""Every head's output before and after the preconditioner, seen while a model runs."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

import torch
from torch import Tensor, nn

from ..config import PreconditionConfig
from ..conversion.convert import attach_all, attention_sites, detach, preconditioned_modules, refuse_compiled
from ..conversion.registry import HeadShape
from ..layers import Preconditioner
from .condition import condition_number
from .rows import row_norm_spread


class Probe(Preconditioner):
    """Shows its observers `A` and what `C A` would be, and passes `A` on: the model computes what it did."""

    def forward(self, rows: Tensor) -> Tensor:
        """``rows``, unchanged."""
        super().forward(rows)
        return rows


class ConditionMonitor:
    """Context manager: records kappa and the spread of row norms of `A` and of `C A`, per layer and head.

    Works on preconditioned models, where `C` is what the model applies, and on plain ones, where `C` is what the
    method would apply; a plain model computes the same with and without the monitor, and its state dict is untouched.
    Everything that runs inside is recorded, so run what you want to see: one batch, in evaluation mode.

    Args:
        model: a model with attention that some adapter knows. Not compiled.

    Raises:
        ValueError: no such attention, or a compiled model (on entering).

    Example:
        >>> with ConditionMonitor(model) as monitor:
        ...     model(images)
        >>> monitor.summary()[0]["kappa_before"]
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._records: dict[str, list[dict[str, Tensor]]] = {}
        self._observed: list[tuple[Preconditioner, Callable[[Tensor, Tensor], None]]] = []
        self._probed: list[nn.Module] = []

    def __enter__(self) -> ConditionMonitor:
        refuse_compiled(self.model)
        sites = attention_sites(self.model, PreconditionConfig(class_attention=True, pooling=True, linear=True))
        plain = [(module, adapter) for _, module, adapter in sites if not hasattr(module, "preconditioner")]
        attach_all(plain, _probe)
        self._probed = [module for module, _ in plain]
        for path, module in preconditioned_modules(self.model):
            preconditioner = module.get_submodule("preconditioner")
            assert isinstance(preconditioner, Preconditioner), "preconditioned_modules yields nothing else"
            observer = self._observer(path)
            preconditioner.observers.append(observer)
            self._observed.append((preconditioner, observer))
        if not self._observed:
            raise ValueError("the model has no attention that can be observed; see precondition_ for what is seen")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for preconditioner, observer in self._observed:
            preconditioner.observers.remove(observer)
        for module in self._probed:
            detach(module)
        self._observed, self._probed = [], []

    def _observer(self, path: str) -> Callable[[Tensor, Tensor], None]:
        records = self._records.setdefault(path, [])

        def observe(before: Tensor, after: Tensor) -> None:
            records.append(
                {
                    "kappa_before": condition_number(before).value.cpu(),
                    "kappa_after": condition_number(after).value.cpu(),
                    "spread_before": row_norm_spread(before).value.cpu(),
                    "spread_after": row_norm_spread(after).value.cpu(),
                }
            )

        return observe

    def summary(self) -> list[dict[str, str | int | float]]:
        """Per layer, in the model's order: medians over all samples and heads, and how many matrices there were.

        Raises:
            ValueError: the model was not run inside the monitor.
        """
        silent = [path for path, records in self._records.items() if not records]
        if silent or not self._records:
            raise ValueError(f"no attention was seen at {silent or 'any layer'}: run the model inside the monitor")
        return [self._layer(path, records) for path, records in self._records.items()]

    def _layer(self, path: str, records: list[dict[str, Tensor]]) -> dict[str, str | int | float]:
        row: dict[str, str | int | float] = {"layer": path}
        for name in records[0]:
            values = torch.cat([record[name].flatten() for record in records])
            row[name] = values.median().item()
        return {**row, "matrices": sum(record["kappa_before"].numel() for record in records)}


def _probe(module: nn.Module, shape: HeadShape) -> Preconditioner:
    return Probe(PreconditionConfig(), marker=False)
