"""CIFAR-10 as the Long Range Arena reads it: gray pixels row by row, 1024 ids of 0 to 255, and one of ten classes.

Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009; the folder ``cifar-10-batches-py``
of its release, five training batches and one test batch, pickled by Python 2, or the parquet files of
``uoft-cs/cifar10`` on the hub.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..._extras import require
from .hub import find_parquet, read_parquet
from .image_files import one_line, read_upright
from .sequences import Sequences

BATCHES = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}
SIDE = 32
PIXELS = SIDE * SIDE
CLASSES = 10
# The globals of a pickled batch; no others are loaded, so that a file cannot execute code.
_ALLOWED = {
    *(("numpy", name) for name in ("ndarray", "dtype")),
    *((module, "_reconstruct") for module in ("numpy.core.multiarray", "numpy._core.multiarray")),
    ("_codecs", "encode"),
}


def read_cifar10(folder: Path, split: str) -> Sequences:
    """The images of ``"train"`` or ``"test"``, in their order.

    Gray is 0.2989 R + 0.587 G + 0.114 B, converted to 8 bits as TensorFlow does it, which the benchmark used.

    Args:
        folder: ``cifar-10-batches-py``, or a folder with ``train-*.parquet`` and ``test-*.parquet``, also in
            ``plain_text/``.
        split: which of the two.

    Raises:
        ValueError: a file is not a batch of CIFAR-10, an image cannot be read, or a label is not in 0 to 9; the message
            names file and image.
        OSError: a file is missing or cannot be read.
    """
    ids: list[bytes] = []
    labels: list[int] = []
    parquet = find_parquet(folder, split)
    parts = _of_hub(parquet) if parquet else (_read_batch(folder / name) for name in BATCHES[split])
    for pixels, own in parts:
        ids += [row.tobytes() for row in _gray(pixels)]
        labels += own
    return Sequences(ids, labels)


def _gray(pixels: Any) -> Any:
    numpy = require("numpy", extra="vision")
    red, green, blue = pixels.reshape(-1, 3, PIXELS).astype(numpy.float64).transpose(1, 0, 2)
    return ((0.2989 * red + 0.587 * green + 0.114 * blue) * (255.5 / 255)).astype(numpy.uint8)


def _read_batch(path: Path) -> tuple[Any, list[int]]:
    numpy = require("numpy", extra="vision")
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; {path.parent} must be the folder cifar-10-batches-py, or hold train-*.parquet and "
            "test-*.parquet (also in plain_text/)"
        )
    try:
        with path.open("rb") as file:
            batch = _BatchUnpickler(file, encoding="bytes").load()
        pixels, labels = batch[b"data"], batch[b"labels"]
    except Exception as error:  # a broken pickle raises errors of many kinds
        raise ValueError(f"{path} is not a batch of CIFAR-10 ({type(error).__name__}: {one_line(error)})") from error
    if not isinstance(labels, list):
        raise ValueError(f"{path}: labels must be a list; got {type(labels).__name__}")
    shape = (len(labels), 3 * PIXELS)
    if not isinstance(pixels, numpy.ndarray) or pixels.shape != shape or pixels.dtype != numpy.uint8 or not len(labels):
        got = f"{pixels.dtype} of shape {pixels.shape}" if isinstance(pixels, numpy.ndarray) else type(pixels).__name__
        raise ValueError(f"{path}: data must be bytes of shape {shape}, one row per label; got {got}")
    for index, label in enumerate(labels):
        _check_label(label, f"{path}, image {index}")
    return pixels, labels


def _of_hub(files: list[Path]) -> Iterator[tuple[Any, list[int]]]:
    """One image at a time: its bytes, ``(1, 3 * 1024)``, and its label."""
    numpy = require("numpy", extra="vision")
    for where, row in read_parquet(files, ("img", "label")):
        _check_label(row["label"], where)
        content = row["img"].get("bytes") if isinstance(row["img"], dict) else None
        if not isinstance(content, bytes):
            raise ValueError(f"{where}: img must hold the bytes of an image; got {row['img']!r:.60}")
        try:
            image = read_upright(io.BytesIO(content))
        except OSError as error:
            raise ValueError(f"{where}: the image cannot be read ({error})") from error
        pixels = numpy.asarray(image)
        if pixels.shape != (SIDE, SIDE, 3):
            raise ValueError(f"{where}: the image must have {SIDE} x {SIDE} pixels; got {image.size}")
        yield pixels.transpose(2, 0, 1).reshape(1, -1), [row["label"]]


def _check_label(label: object, where: str) -> None:
    if isinstance(label, bool) or not isinstance(label, int) or label not in range(CLASSES):
        raise ValueError(f"{where}: the label must be 0 to 9; got {label!r:.60}")


class _BatchUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Only the globals in ``_ALLOWED``."""
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in it")
        return super().find_class(module, name)
