import io
import pickle
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from preconditioned_attention.lab.data.cifar10 import read_cifar10
from tests.helpers.long_range_trees import write_cifar10, write_cifar10_of_hub


def batch(**values: object) -> bytes:
    content = {b"labels": [1, 2], b"data": np.zeros((2, 3072), dtype=np.uint8)}
    return pickle.dumps({**content, **{name.encode(): value for name, value in values.items()}}, protocol=2)


def test_gray_pixels_and_classes(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path / "cifar-10-batches-py")
    train, test = read_cifar10(folder, "train"), read_cifar10(folder, "test")
    assert (len(train), len(test), list(test.labels)) == (20, 4, [0, 1, 2, 3])
    raw = pickle.loads((folder / "data_batch_2").read_bytes())[b"data"][3].astype(float)
    gray = 0.2989 * raw[:1024] + 0.587 * raw[1024:2048] + 0.114 * raw[2048:]
    ids, label = train[7]
    assert np.abs(ids.numpy() - gray).max() <= 1
    assert label == 3


def test_black_and_white(tmp_path: Path) -> None:
    pixels = np.concatenate([np.zeros((1, 3072)), np.full((1, 3072), 255)]).astype(np.uint8)
    (tmp_path / "test_batch").write_bytes(batch(data=pixels))
    data = read_cifar10(tmp_path, "test")
    assert (set(data.ids[0]), set(data.ids[1])) == ({0}, {255})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"test_batch is not a batch of CIFAR-10 \(EOFError"),
        (b"no pickle", r"test_batch is not a batch of CIFAR-10"),
        (batch(labels=[1, 10]), r"test_batch, image 1: the label must be 0 to 9; got 10"),
        (batch(labels=[1]), r"test_batch: data must be bytes of shape \(1, 3072\)"),
        (batch(data=np.zeros((2, 3072))), r"test_batch: data must be bytes of shape \(2, 3072\)"),
        (pickle.dumps(Path("x"), protocol=2), r"is not allowed in it"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_cifar10(tmp_path, "test")


def test_a_missing_batch(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path / "cifar-10-batches-py")
    (folder / "data_batch_4").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"data_batch_4 is missing; .* must be the folder cifar-10-batches-py, or"
    ):
        read_cifar10(folder, "train")


def test_the_files_of_the_hub_hold_the_same(tmp_path: Path) -> None:
    release = write_cifar10(tmp_path / "cifar-10-batches-py")
    hub = write_cifar10_of_hub(tmp_path / "cifar10", release)
    for split in ("train", "test"):
        expected, read = read_cifar10(release, split), read_cifar10(hub, split)
        assert (read.ids, read.labels) == (expected.ids, expected.labels)


@pytest.mark.parametrize(
    ("content", "label", "message"),
    [
        (b"no image", 3, r"row 1: the image cannot be read"),
        (b"", 3, r"row 1: the image cannot be read"),
        (None, 10, r"row 1: the label must be 0 to 9; got 10"),
    ],
)
def test_what_is_wrong_in_a_file_of_the_hub(content: bytes | None, label: int, message: str, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    row = {"img": [{"bytes": content or b"x", "path": None}], "label": [label]}
    datasets.Dataset.from_dict(row).to_parquet(tmp_path / "test-0.parquet")
    with pytest.raises(ValueError, match=message):
        read_cifar10(tmp_path, "test")


def test_a_truncated_or_large_image_of_the_hub(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    for name, side, cut, message in (
        ("a", 32, 60, "cannot be read"),
        ("b", 33, 0, r"must have 32 x 32 pixels; got \(33"),
    ):
        buffer = io.BytesIO()
        PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)).save(
            buffer, "PNG"
        )
        content = buffer.getvalue()[: len(buffer.getvalue()) - cut]
        (tmp_path / name).mkdir()
        rows = {"img": [{"bytes": content, "path": None}], "label": [1]}
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / name / "test-0.parquet")
        with pytest.raises(ValueError, match=message):
            read_cifar10(tmp_path / name, "test")
