"""The monitor's data: the observed matrices, and one record of numbers per matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..layers.observation import AttentionArguments
from ..ops import as_mask
from .condition import condition_number
from .entropy import attention_entropy
from .medians import median
from .rows import mean_direction_share, row_norm_spread


class Record(NamedTuple):
    """The numbers of one head's output in one recorded call, before and after `C`.

    Undefined numbers are NaN: a kappa where the matrix is numerically singular (then ``at_least`` is a lower bound),
    everything where an entry is not finite; ``entropy`` and ``kappa_jacobian`` where they are not available or were not
    requested.

    ``step`` counts from 1. ``call`` counts the calls of one layer within a step. ``sample`` and ``head`` are indices
    into the layer's batch and heads. ``not_available`` says why there is no entropy.
    """

    step: int
    process: int
    layer: str
    call: int
    sample: int
    head: int
    rows: int
    head_dim: int
    dtype: str
    kappa_before: float
    kappa_after: float
    at_least_before: float
    at_least_after: float
    singular_before: bool
    singular_after: bool
    spread_before: float
    spread_after: float
    common_direction: float
    entropy: float
    kappa_jacobian: float
    not_available: str


@dataclass(frozen=True, kw_only=True)
class Observation:
    """The matrices of one recorded call, on the CPU, in the dtype in which they were computed.

    Attributes:
        step, process, layer, call: as in :class:`Record`.
        samples, heads: the indices that were drawn.
        before: `A`, ``(samples, heads, N, d)``.
        after: `C A`, likewise.
        weights: the softmax matrix before dropout in float64, ``(samples, heads, N, M)``; None if not available.
        not_available: why there is none.
        kappa_jacobian: of the layer with respect to its input; NaN if it was not requested.
    """

    step: int
    process: int
    layer: str
    call: int
    samples: Tensor
    heads: Tensor
    before: Tensor
    after: Tensor
    weights: Tensor | None
    not_available: str
    kappa_jacobian: float = math.nan


def measure(seen: Observation) -> list[Record]:
    """One record per drawn sample and head."""
    before, after = condition_number(seen.before), condition_number(seen.after)
    spreads = row_norm_spread(seen.before).value, row_norm_spread(seen.after).value
    direction = mean_direction_share(seen.before).value
    entropy = torch.full_like(direction, math.nan) if seen.weights is None else attention_entropy(seen.weights).value
    places = [(s, h) for s in range(len(seen.samples)) for h in range(len(seen.heads))]
    return [
        Record(
            step=seen.step, process=seen.process, layer=seen.layer, call=seen.call,
            sample=int(seen.samples[s]), head=int(seen.heads[h]),
            rows=seen.before.shape[-2], head_dim=seen.before.shape[-1],
            dtype=str(seen.before.dtype).removeprefix("torch."),
            kappa_before=before.value[s, h].item(), kappa_after=after.value[s, h].item(),
            at_least_before=before.lower[s, h].item(), at_least_after=after.lower[s, h].item(),
            singular_before=bool(before.numerically_singular[s, h]),
            singular_after=bool(after.numerically_singular[s, h]),
            spread_before=spreads[0][s, h].item(), spread_after=spreads[1][s, h].item(),
            common_direction=direction[s, h].item(), entropy=entropy[s, h].item(),
            kappa_jacobian=seen.kappa_jacobian, not_available=seen.not_available,
        )
        for s, h in places
    ]  # fmt: skip


def softmax_weights(arguments: AttentionArguments, samples: Tensor, heads: Tensor, tokens: Tensor) -> Tensor:
    """The attention weights of the drawn samples, heads and queries before dropout, in float64; masked rows are zero.

    Leading axes before the heads count as one, as in the observed rows.
    """
    q, k = (x.detach() for x in (arguments.q, arguments.k))
    shape = (*q.shape[:-1], k.shape[-2])
    groups = q.shape[-3] // k.shape[-3]
    q = q.reshape(-1, *q.shape[-3:])[samples][:, heads][:, :, tokens].double().cpu()
    k = k.reshape(-1, *k.shape[-3:])[samples][:, heads // groups].double().cpu()
    products = q @ k.mT * (q.shape[-1] ** -0.5 if arguments.scale is None else arguments.scale)
    attn_mask, is_causal = as_mask(arguments.attn_mask, arguments.is_causal, arguments.q, arguments.k)
    if attn_mask is not None:
        mask = attn_mask.detach().expand(shape).reshape(-1, *shape[-3:])[samples][:, heads][:, :, tokens].cpu()
        products = products.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else products + mask
    if is_causal:
        visible = torch.ones(shape[-2:], dtype=torch.bool).tril()[tokens]
        products = products.masked_fill(~visible, -math.inf)
    nowhere = (products == -math.inf).all(dim=-1, keepdim=True)
    return products.masked_fill(nowhere, 0.0).softmax(dim=-1).masked_fill(nowhere, 0.0)


def summarize(layer: str, records: Sequence[Record]) -> dict[str, str | int | float]:
    """Medians over the records of one layer.

    A numerically singular matrix counts as inf, so a median of inf means that most of them are singular; the counts are
    given too. NaN: not available, or an entry was not finite.
    """
    return {
        "layer": layer,
        "kappa_before": median([math.inf if r.singular_before else r.kappa_before for r in records]),
        "kappa_after": median([math.inf if r.singular_after else r.kappa_after for r in records]),
        "spread_before": median([r.spread_before for r in records]),
        "spread_after": median([r.spread_after for r in records]),
        "common_direction": median([r.common_direction for r in records]),
        "entropy": median([r.entropy for r in records]),
        "singular_before": sum(r.singular_before for r in records),
        "singular_after": sum(r.singular_after for r in records),
        "matrices": len(records),
    }
