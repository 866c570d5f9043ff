import numpy as np
import pytest
import torch

from preconditioned_attention.lab.data.digits import DigitImages, load_digits


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


def test_digits_as_images() -> None:
    for split, part in zip(("train", "validation", "test"), load_digits(split_seed=2), strict=True):
        images = DigitImages(split, split_seed=2)
        assert len(images) == len(part)
        assert images.classes == tuple("0123456789")
        image, label = images.read(5)
        assert (image.size, image.mode, label) == ((8, 8), "RGB", int(part[5][1]))
        gray = torch.from_numpy(np.array(image)).double().permute(2, 0, 1)
        # Half a gray level: 16 levels of the data in 255 of an image.
        torch.testing.assert_close(gray / 127.5 - 1, part[5][0].double().expand(3, 8, 8), atol=0.5 / 127.5, rtol=0)
