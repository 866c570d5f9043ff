import random

import numpy
import torch

from preconditioned_attention.lab.training.randomness import Stream, derive_seed, seed_all


def draw() -> tuple[float, float, float]:
    return random.random(), numpy.random.rand(), torch.rand(()).item()


def test_every_generator_is_seeded() -> None:
    seed_all(2**64 - 1)
    first = draw()
    assert first != draw()
    seed_all(2**64 - 1)
    assert draw() == first


def test_seeds_differ_by_every_part_of_their_key() -> None:
    keys = [(seed, stream, *key) for seed in (0, 1) for stream in Stream for key in ((), (0,), (1,), (0, 0), (0, 1))]
    seeds = [derive_seed(*key) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert seeds == [derive_seed(*key) for key in keys]
