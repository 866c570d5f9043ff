import pickle
from pathlib import Path

import numpy as np
import pytest

from preconditioned_attention.data.cifar10 import TEST, TRAIN, read_cifar10
from tests.data.long_range_trees import write_cifar10


def batch(**values: object) -> bytes:
    content = {b"labels": [1, 2], b"data": np.zeros((2, 3072), dtype=np.uint8)}
    return pickle.dumps({**content, **{name.encode(): value for name, value in values.items()}}, protocol=2)


def test_grey_pixels_and_classes(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path / "cifar-10-batches-py")
    train, test = read_cifar10(folder, TRAIN), read_cifar10(folder, TEST)
    assert (len(train), len(test), list(test.labels)) == (20, 4, [0, 1, 2, 3])
    raw = pickle.loads((folder / "data_batch_2").read_bytes())[b"data"][3].astype(float)
    grey = 0.2989 * raw[:1024] + 0.587 * raw[1024:2048] + 0.114 * raw[2048:]
    ids, label = train[7]
    assert np.abs(ids.numpy() - grey).max() <= 1
    assert label == 3


def test_black_and_white(tmp_path: Path) -> None:
    pixels = np.concatenate([np.zeros((1, 3072)), np.full((1, 3072), 255)]).astype(np.uint8)
    (tmp_path / "test_batch").write_bytes(batch(data=pixels))
    data = read_cifar10(tmp_path, TEST)
    assert (set(data.ids[0]), set(data.ids[1])) == ({0}, {255})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"test_batch is not a batch of CIFAR-10 \(EOFError"),
        (b"no pickle", r"test_batch is not a batch of CIFAR-10"),
        (batch(labels=[1, 10]), r"test_batch, image 1: the label must be 0 to 9; got 10"),
        (batch(labels=[1]), r"test_batch: data must be bytes of shape \(1, 3072\)"),
        (batch(data=np.zeros((2, 3072))), r"test_batch: data must be bytes of shape \(2, 3072\)"),
        (pickle.dumps(Path("x"), protocol=2), r"has no place in it"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_cifar10(tmp_path, TEST)


def test_a_missing_batch(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path / "cifar-10-batches-py")
    (folder / "data_batch_4").unlink()
    with pytest.raises(FileNotFoundError, match=r"data_batch_4 is missing; .* must be the folder cifar-10-batches-py"):
        read_cifar10(folder, TRAIN)
