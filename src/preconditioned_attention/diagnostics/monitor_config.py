"""`MonitorConfig`: which steps, samples, heads and tokens the monitor records."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._checks import check_integer, check_known

RUN_EVERY = 50
RUN_SAMPLES = 1


@dataclass(frozen=True, kw_only=True)
class MonitorConfig:
    """Which steps, samples, heads and tokens are recorded. The choice is drawn once, so a curve follows the same ones.

    Args:
        every: one forward pass in this many is recorded, from the first on. None: every one inside ``with``, one in 50
            when the monitor is attached for a run.
        samples: how many matrices per head of a recorded call (images, sequences; for window attention, windows).
            None: all inside ``with``, one when attached.
        heads: how many heads per layer; None: all.
        tokens: how many rows of each matrix; None: all. The measures are then those of the drawn rows, and a part of a
            matrix has another condition number than the whole.
        seed: of the draw.

    Raises:
        TypeError, ValueError: an option has a value it cannot have; the message names it.
    """

    every: int | None = None
    samples: int | None = None
    heads: int | None = None
    tokens: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("every", "samples", "heads", "tokens"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), minimum=1)
        check_integer("seed", self.seed, minimum=0)

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> MonitorConfig:
        """From plain values, as a file holds them; options left out keep their defaults."""
        check_known("monitor option", options, [field.name for field in dataclasses.fields(cls)])
        return cls(**options)

    def for_run(self) -> MonitorConfig:
        """The same with the defaults of a whole training run in place of None."""
        return dataclasses.replace(self, every=self.every or RUN_EVERY, samples=self.samples or RUN_SAMPLES)

    def draw(self, what: str, size: int, count: int | None) -> Tensor:
        """``count`` of ``size`` indices, ascending; the same ones whenever ``what`` and the seed are the same."""
        if count is None or count >= size:
            return torch.arange(size)
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {what}".encode()))
        return torch.randperm(size, generator=generator)[:count].sort().values
