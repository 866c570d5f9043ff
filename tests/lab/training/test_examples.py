import random
from itertools import islice

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

from preconditioned_attention.lab.training.examples import load_batches
from preconditioned_attention.lab.training.order import BatchOrder


class Noisy(Dataset):
    """Every example is its index and a random number from each of the three generators."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index, random.random(), np.random.rand(), torch.rand(()).item()], dtype=torch.float64)


def batches(count: int, *, workers: int = 0, seed: int = 0, **order: int) -> torch.Tensor:
    torch.manual_seed(len(order) + workers)  # what went before must not matter
    loaded = load_batches(
        Noisy(), BatchOrder(size=12, batch_size=4, seed=seed, **order), collate=default_collate, workers=workers
    )
    return torch.stack(list(islice(loaded, count)))


def test_augmentation_is_a_function_of_the_seed_and_the_step() -> None:
    whole = batches(6)
    assert torch.equal(batches(6), whole)
    assert torch.equal(batches(2, first_step=4), whole[4:])
    assert not torch.equal(batches(6, seed=1)[..., 1:], whole[..., 1:])
    drawn = whole[..., 1:].flatten()
    assert len(drawn.unique()) == len(drawn)


def test_workers_change_nothing() -> None:
    assert torch.equal(batches(5, workers=2), batches(5))


def test_micro_batches_and_processes_draw_their_own_numbers() -> None:
    parts = [batches(4, accumulation_steps=2, processes=2, process=process) for process in range(2)]
    indices = torch.stack(parts, dim=1)[..., 0].reshape(2, 4)
    assert torch.equal(indices, batches(2)[..., 0])
    drawn = torch.stack(parts)[..., 1:].flatten()
    assert len(drawn.unique()) == len(drawn)
    later = batches(2, accumulation_steps=2, processes=2, process=1, first_step=1)
    assert torch.equal(later, parts[1][2:])
