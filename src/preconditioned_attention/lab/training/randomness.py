"""Seeds that are derived from the run's seed, the step, the micro-batch and the process.

A step's random numbers depend on nothing else, so two arms of a comparison drop the same activations, and a resumed run
needs no replay.
"""

from __future__ import annotations

import enum
import random

import torch

from ..._extras import require


class Stream(enum.IntEnum):
    """Uses of random numbers; streams of one seed are independent of each other."""

    MODEL = 0
    ORDER = 1
    STEP = 2
    EVALUATION = 3
    EXAMPLES = 4


def derive_seed(seed: int, stream: Stream, *key: int) -> int:
    """A 64-bit seed for one use: a pure function of its arguments (numpy's ``SeedSequence``)."""
    numpy = require("numpy", extra="train")
    sequence = numpy.random.SeedSequence(seed, spawn_key=(int(stream), *key))
    return int(sequence.generate_state(1, numpy.uint64)[0])


def seed_all(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch, on every device."""
    random.seed(seed)
    require("numpy", extra="train").random.seed(seed % 2**32)
    torch.manual_seed(seed)
