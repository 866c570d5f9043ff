"""Tiny trees in the layouts of the sources of the Long Range Arena."""

import pickle
from pathlib import Path

import numpy as np

from preconditioned_attention.data.cifar10 import TEST, TRAIN


def write_imdb(folder: Path) -> Path:
    for split in ("train", "test"):
        for name, text in (("pos", "Good – really."), ("neg", "Bad.")):
            (folder / split / name).mkdir(parents=True)
            for number in range(3):
                (folder / split / name / f"{number}_7.txt").write_text(f"{split} {number} {text}", encoding="utf-8")
    (folder / "train" / "unsup").mkdir()
    (folder / "imdb.vocab").write_text("the\n")
    return folder


def write_aan(folder: Path) -> Path:
    folder.mkdir()
    for split, size in (("train", 6), ("eval", 3), ("test", 3)):
        lines = [
            f'{number % 2}.0\tP{number}\tC{number}\tA "text {split}\tAnother, longer {number}' for number in range(size)
        ]
        (folder / f"new_aan_pairs.{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_cifar10(folder: Path, *, per_batch: int = 4) -> Path:
    """Pickled with protocol 2 and keys of bytes, as Python 2 wrote the release."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in (*TRAIN, *TEST):
        pixels = random.integers(0, 256, size=(per_batch, 3072), dtype=np.uint8)
        batch = {b"batch_label": name.encode(), b"labels": list(range(per_batch)), b"data": pixels, b"filenames": []}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return folder
