"""Measurement of every head of a model on one input."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...diagnostics import ConditionMonitor, Observation, Record, singular_values
from ...diagnostics.medians import median
from .inputs import Inputs

SAMPLES = 2  # matrices per head: images or sequences; of windows as many
DOUBLE_LIMIT = 500_000_000  # parameters up to which a model is run in float64
RUN_LIMIT = 1_500_000_000  # parameters up to which a model is run


@dataclass(frozen=True, kw_only=True)
class Head:
    """The medians over the samples of one head; NaN where a number does not exist (kappa: numerically singular)."""

    layer: str
    head: int
    rows: int
    head_dim: int
    kappa_before: float
    kappa_after: float
    spread: float
    common_direction: float
    entropy: float

    @property
    def factor(self) -> float:
        """kappa before `C` over kappa after it."""
        return self.kappa_before / self.kappa_after


@dataclass(frozen=True, kw_only=True)
class LayerProfile:
    """A layer's singular values over the largest: geometric means over heads and samples."""

    layer: str
    before: tuple[float, ...]
    after: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """The measurements of one model.

    Attributes:
        weights: the source of the weights, in words.
        precision: the dtype in which the model was run.
        heads: in the order of layers and heads.
        profiles: one per layer.
        no_entropy: per layer without a softmax matrix, the reason.
    """

    weights: str
    precision: str
    heads: tuple[Head, ...]
    profiles: tuple[LayerProfile, ...]
    no_entropy: dict[str, str]

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers' names, in the model's order."""
        return tuple(profile.layer for profile in self.profiles)


def check_size(model: nn.Module, name: str) -> None:
    """Raise if the model is too large to be run for an inspection.

    Raises:
        ValueError: it is; the message names alternatives.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if parameters > RUN_LIMIT:
        raise ValueError(
            f"{name} has {parameters / 1e9:.1f} billion parameters and is not run here (limit: {RUN_LIMIT / 1e9:g}); "
            "inspect a smaller configuration of it (a folder with config.json), or use ConditionMonitor where it runs"
        )


def measure_model(model: nn.Module, inputs: Inputs, *, layers: Sequence[str], weights: str) -> Inspection:
    """Run the model once in evaluation mode and measure the heads of ``layers``.

    In float64, if the model is not too large, because float32 cannot resolve the condition numbers of nearly parallel
    rows, as at initialization. The model is converted to that dtype.

    Raises:
        ValueError: the model cannot be run on this input, a layer was not called, or its heads are not finite.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    dtype = torch.float64 if parameters <= DOUBLE_LIMIT else torch.float32
    model.to(dtype).eval()
    values: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)

    def keep(seen: Observation) -> None:
        if seen.layer in layers:
            values[seen.layer].append((_profile(seen.before), _profile(seen.after)))

    with torch.no_grad(), ConditionMonitor(model, samples=SAMPLES, on_observation=keep) as monitor:
        _run(model, inputs, dtype)
    silent = [layer for layer in layers if layer not in values]
    if silent:
        raise ValueError(f"{', '.join(silent)}: not called on this input, so there is nothing to measure")
    records = [record for record in monitor.records if record.layer in layers]
    _check_finite(records, f"{type(model).__name__} with {weights}, run on {inputs.description}")
    return Inspection(
        weights=weights,
        precision=str(dtype).removeprefix("torch."),
        heads=tuple(_heads(records, layers)),
        profiles=tuple(_layer_profile(layer, values[layer]) for layer in layers),
        no_entropy={record.layer: record.not_available for record in records if record.not_available},
    )


def _check_finite(records: Sequence[Record], what: str) -> None:
    """Raise if some head's output has NaN or infinite entries: nothing about such a model can be measured."""
    broken = dict.fromkeys(record.layer for record in records if not math.isfinite(record.spread_before))
    if broken:
        raise ValueError(
            f"{what}: NaN or infinite entries in the output of {len(broken)} of its attention layers, first of "
            f"{next(iter(broken))}; check the weights"
        )


def _run(model: nn.Module, inputs: Inputs, dtype: torch.dtype) -> None:
    args = [x.to(dtype) if x.is_floating_point() else x for x in inputs.args]
    kwargs = {name: x.to(dtype) if x.is_floating_point() else x for name, x in inputs.kwargs.items()}
    try:
        model(*args, **kwargs)
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, AssertionError) as error:
        raise ValueError(
            f"{type(model).__name__} cannot be run on {inputs.description}: {type(error).__name__}: "
            f"{(str(error) or 'no message').splitlines()[0]}. Use ConditionMonitor around your own call of the model"
        ) from error


def _profile(matrices: Tensor) -> Tensor:
    """Geometric mean of the singular values over the largest, ``(samples, heads, N, d) -> (min(N, d),)``."""
    values = singular_values(matrices).value.flatten(0, 1)
    share = values / values[:, :1]
    return share[share.isfinite().all(dim=-1)].log().mean(dim=0).exp()


def _layer_profile(layer: str, values: list[tuple[Tensor, Tensor]]) -> LayerProfile:
    """Of the first call, because later calls of a layer may have another number of tokens."""
    before, after = values[0]
    return LayerProfile(layer=layer, before=tuple(before.tolist()), after=tuple(after.tolist()))


def _heads(records: Sequence[Record], layers: Sequence[str]) -> list[Head]:
    grouped: dict[tuple[str, int], list[Record]] = defaultdict(list)
    for record in records:
        grouped[record.layer, record.head].append(record)
    return [_head(grouped[key]) for key in sorted(grouped, key=lambda key: (layers.index(key[0]), key[1]))]


def _head(records: list[Record]) -> Head:
    def of(name: str) -> float:
        return median(getattr(record, name) for record in records)

    first = records[0]
    return Head(
        layer=first.layer, head=first.head, rows=first.rows, head_dim=first.head_dim,
        kappa_before=of("kappa_before"), kappa_after=of("kappa_after"), spread=of("spread_before"),
        common_direction=of("common_direction"), entropy=of("entropy"),
    )  # fmt: skip
