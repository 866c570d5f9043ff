"""Paired, interleaved timing: candidates alternate, so that changes in the machine's speed affect all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Candidate = Callable[[], object]

WARMUP_TURNS = 2


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of one candidate, and the quantiles of its ratio to the first candidate, turn by turn."""

    turns: int
    median_seconds: float
    ratio_p20: float
    ratio_p50: float
    ratio_p80: float


def time_against_first(candidates: Mapping[str, Candidate], *, seconds: float) -> dict[str, Timing]:
    """:func:`time_paired` of every candidate with the first, two at a time.

    With more than two in a turn, each would be timed with the caches and allocator pages that its predecessor left.
    ``seconds`` is the time of one pair.
    """
    (first, reference), *others = candidates.items()
    timings: dict[str, Timing] = {}
    for name, candidate in others:
        pair = time_paired({first: reference, name: candidate}, seconds=seconds)
        timings = {first: pair[first]} | timings | {name: pair[name]}
    return timings


def time_paired(candidates: Mapping[str, Candidate], *, seconds: float, least_turns: int = 7) -> dict[str, Timing]:
    """Run every candidate once a turn; ratios are to the first.

    Args:
        candidates: name to a function without arguments.
        seconds: the time to take turns for.
        least_turns: the least number of turns, after two for warm-up.

    Raises:
        ValueError: no candidate, or fewer than one turn.
    """
    if not candidates or least_turns < 1:
        raise ValueError(f"time_paired needs a candidate and a turn at least; got {len(candidates)} and {least_turns}")
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    start = time.perf_counter()
    turns = -WARMUP_TURNS
    while turns < least_turns or time.perf_counter() - start < seconds:
        # The order alternates, so that no candidate always follows the same one.
        for name, candidate in list(candidates.items())[:: 1 if turns % 2 else -1]:
            elapsed = _seconds(candidate)
            if turns >= 0:
                taken[name].append(elapsed)
        turns += 1
    reference = taken[next(iter(candidates))]
    return {name: _timing(own, reference) for name, own in taken.items()}


def _seconds(candidate: Candidate) -> float:
    if not torch.cuda.is_available():
        start = time.perf_counter()
        candidate()
        return time.perf_counter() - start
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    candidate()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3


def _timing(own: list[float], reference: list[float]) -> Timing:
    ratios = [a / b for a, b in zip(own, reference, strict=True)]
    p20, p50, p80 = (_quantile(ratios, q) for q in (0.2, 0.5, 0.8))
    return Timing(turns=len(own), median_seconds=statistics.median(own), ratio_p20=p20, ratio_p50=p50, ratio_p80=p80)


def _quantile(values: list[float], q: float) -> float:
    return torch.tensor(values, dtype=torch.float64).quantile(q).item()
