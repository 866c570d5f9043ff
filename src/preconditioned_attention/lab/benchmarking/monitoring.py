"""The time that the condition monitor adds to a training step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial

from torch import nn

from ...conversion import precondition_
from ...diagnostics import ConditionMonitor
from ...diagnostics.monitor_config import RUN_EVERY
from .attention import Row
from .shapes import MONITORED
from .steps import MODELS, Loss, make_optimizer, take_step
from .timing import Timing, time_against_first


def measure_monitor(*, device: str, seconds: float) -> Iterator[Row]:
    """Time a training step with the monitor attached relative to one without, for a plain and a converted ViT-S.

    Recorded steps (``"every=1"``) and steps in between (``"not recorded"``) are timed. By default one step in 50 is
    recorded: ``"every=50"`` is the weighted mean of the two, quantile by quantile, and not measured itself.

    Raises:
        ImportError: timm is not installed.
    """
    plain, loss = MODELS[MONITORED.name](MONITORED, device)
    converted = copy.deepcopy(plain)
    precondition_(converted, strict=True)
    for name, model in (("plain", plain), ("full", converted)):
        timings = _timings(model, loss, seconds)
        recorded, other = timings["every=1"], timings["not recorded"]
        timings[f"every={RUN_EVERY}"] = _mixed(recorded, other, 1 / RUN_EVERY)
        for candidate, timing in timings.items():
            yield _row(timing, measured=f"training step, {name}", candidate=candidate)


def _timings(model: nn.Module, loss: Loss, seconds: float) -> dict[str, Timing]:
    """Each candidate has its own copy of the model and its own optimizer."""
    models = {name: copy.deepcopy(model) for name in ("no monitor", "not recorded", "every=1")}
    steps: dict[str, Callable[[], object]] = {
        name: partial(take_step, own, make_optimizer(own), loss) for name, own in models.items()
    }
    between, always = (ConditionMonitor(models[name]).attach() for name in ("not recorded", "every=1"))
    between.step = 2  # the first step is recorded, and every 50th after it
    try:
        return time_against_first({**steps, "every=1": partial(_recorded, always, steps["every=1"])}, seconds=seconds)
    finally:
        between.close()
        always.close()


def _recorded(monitor: ConditionMonitor, step: Callable[[], object]) -> None:
    monitor.step += RUN_EVERY
    step()
    monitor.take()


def _mixed(recorded: Timing, other: Timing, share: float) -> Timing:
    def mean(name: str) -> float:
        return share * getattr(recorded, name) + (1 - share) * getattr(other, name)

    return Timing(
        turns=min(recorded.turns, other.turns),
        median_seconds=mean("median_seconds"),
        ratio_p20=mean("ratio_p20"),
        ratio_p50=mean("ratio_p50"),
        ratio_p80=mean("ratio_p80"),
    )


def _row(timing: Timing, *, measured: str, candidate: str) -> Row:
    shape = MONITORED
    return Row(
        shape=shape.name, batch=shape.batch, heads=shape.heads, length=shape.length, keys=shape.keys,
        head_dim=shape.head_dim, dtype="float32", mode="eager", measured=measured, candidate=candidate,
        turns=timing.turns, median_ms=timing.median_seconds * 1e3,
        ratio_p20=timing.ratio_p20, ratio_p50=timing.ratio_p50, ratio_p80=timing.ratio_p80,
        saved_bytes=None, peak_bytes=None,
    )  # fmt: skip
