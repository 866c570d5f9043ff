"""Randomness that is derived from what is being computed, so that nothing has to be carried along.

A step's random numbers depend on the run's seed, the step, the micro-batch and the process, and on nothing else.
Two arms of a comparison therefore drop the same activations, and a resumed run needs no replay.
"""

from __future__ import annotations

import enum
import random

import torch

from ..._extras import require


class Stream(enum.IntEnum):
    """What random numbers are for; streams of one seed are independent of each other."""

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
