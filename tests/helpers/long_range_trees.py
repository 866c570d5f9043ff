"""Tiny trees in the layouts of the sources of the Long Range Arena."""

import pickle
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from preconditioned_attention.lab.data.cifar10 import BATCHES


def write_imdb(folder: Path) -> Path:
    for split in ("train", "test"):
        for name, text in (("pos", "Good – really."), ("neg", "Bad.")):
            (folder / split / name).mkdir(parents=True)
            for number in range(3):
                (folder / split / name / f"{number}_7.txt").write_text(f"{split} {number} {text}", encoding="utf-8")
    (folder / "train" / "unsup").mkdir()
    (folder / "imdb.vocab").write_text("the\n")
    return folder


def write_imdb_of_hub(folder: Path) -> Path:
    """The parquet files of the hub, with its features in their metadata."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    (folder / "plain_text").mkdir(parents=True)
    for split, label in (("train", 1), ("test", 1), ("unsupervised", -1)):
        rows = {"text": [f"{split} Good – really.", f"{split} Bad."], "label": [label, min(label, 0)]}
        path = folder / "plain_text" / f"{split}-00000-of-00001.parquet"
        datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    return folder


def write_aan(folder: Path) -> Path:
    folder.mkdir()
    for split, size in (("train", 6), ("eval", 3), ("test", 3)):
        lines = [
            f'{number % 2}.0\tP{number}\tC{number}\tA "text {split}\tAnother, longer {number}' for number in range(size)
        ]
        (folder / f"new_aan_pairs.{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_cifar10_of_hub(folder: Path, release: Path) -> Path:
    """The images of a release as the hub has them: PNG files inside of parquet files."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    (folder / "plain_text").mkdir(parents=True)
    for split, names in BATCHES.items():
        images, labels = [], []
        for name in names:
            batch = pickle.loads((release / name).read_bytes())
            labels += batch[b"labels"]
            images += [PIL.Image.fromarray(row.reshape(3, 32, 32).transpose(1, 2, 0)) for row in batch[b"data"]]
        path = folder / "plain_text" / f"{split}-00000-of-00001.parquet"
        datasets.Dataset.from_dict({"img": images, "label": labels}, features=features).to_parquet(path)
    return folder


def write_cifar10(folder: Path, *, per_batch: int = 4) -> Path:
    """Pickled with protocol 2 and keys of bytes, as Python 2 wrote the release."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in (*BATCHES["train"], *BATCHES["test"]):
        pixels = random.integers(0, 256, size=(per_batch, 3072), dtype=np.uint8)
        batch = {b"batch_label": name.encode(), b"labels": list(range(per_batch)), b"data": pixels, b"filenames": []}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return folder
