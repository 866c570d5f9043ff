import pytest
import torch

from preconditioned_attention.data.digits import load_digits


def all_of(*parts: torch.utils.data.TensorDataset) -> torch.Tensor:
    return torch.cat([torch.cat([part.tensors[0].flatten(1), part.tensors[1][:, None]], dim=1) for part in parts])


def test_the_splits_hold_every_image_once() -> None:
    from sklearn.datasets import load_digits as bundled

    parts = load_digits()
    assert [len(part) for part in parts] == [1197, 300, 300]
    pixels, labels = bundled(return_X_y=True)
    original = torch.cat([torch.from_numpy(pixels).float() / 8 - 1, torch.from_numpy(labels)[:, None]], dim=1)
    rows = sorted(map(tuple, all_of(*parts).tolist()))
    assert rows == sorted(map(tuple, original.tolist()))


def test_scaled_images_and_every_class_everywhere() -> None:
    for part in load_digits():
        images, labels = part.tensors
        assert images.shape[1:] == (1, 8, 8)
        assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
        assert images.min() == -1.0
        assert images.max() == 1.0
        assert (labels.bincount(minlength=10) / len(labels)).sub(0.1).abs().max() < 0.01


def test_the_split_depends_on_its_seed_alone() -> None:
    first = all_of(*load_digits())
    torch.manual_seed(1)
    assert torch.equal(first, all_of(*load_digits()))
    assert not torch.equal(first, all_of(*load_digits(split_seed=1)))
    with pytest.raises(ValueError, match="split_seed"):
        load_digits(split_seed=-1)
