import pytest
import torch
from torch.utils.data import Dataset, default_collate

from preconditioned_attention.lab.training.loading import BatchLoader, Examples


class Broken(Dataset):
    """Numbers, of which the fifth cannot be read."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> int:
        if index == 4:
            raise OSError(f"image {index} cannot be read")
        return index


@pytest.mark.parametrize("workers", [0, 1])
def test_the_error_of_an_example_is_the_datasets_own(workers: int) -> None:
    batches = iter(BatchLoader(Examples(Broken()), collate=default_collate, workers=workers, batch_size=2))
    assert torch.equal(next(batches), torch.tensor([0, 1]))
    assert torch.equal(next(batches), torch.tensor([2, 3]))
    with pytest.raises(OSError, match=r"^image 4 cannot be read$"):
        next(batches)
    assert len(Examples(Broken())) == 6
