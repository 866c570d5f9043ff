"""Labeled images on disk, as timm's readers and torchvision's datasets give them.

Layouts: a folder per split with a folder per class below it; ``train.tar`` and ``val.tar`` in place of these
folders; ``torch/imagenet`` and timm's other names for torchvision's datasets; ``hfds/NAME`` for Hugging Face datasets.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor
from torch.utils.data import Dataset

from ..._extras import require
from .class_folders import check_class_folders
from .image_files import as_rgb, check_regular, one_line, printable, read_upright

if TYPE_CHECKING:
    from PIL.Image import Image

PREFIXES = ("hfds/", "torch/")
STREAMS = ("hfids/", "tfds/", "wds/")
TRAIN_NAMES = ("train", "training")
EVALUATION_NAMES = ("val", "valid", "validation", "eval", "evaluation")
# Datasets of torchvision for which timm takes every other name of a split for the test split.
TWO_SPLITS = ("cifar10", "cifar100", "mnist", "kmnist", "fashion_mnist")
FOLDERS_OF_TORCHVISION = ("folder", "image_folder")


class LabeledImages(Protocol):
    """Images of one split with their labels."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the labels 0, 1, ...; empty if the source does not name them."""

    def __len__(self) -> int:
        """How many images there are."""

    def read(self, index: int) -> tuple[Image, int]:
        """The image, in RGB, 8 bits per channel, and its label.

        Raises:
            OSError: the image cannot be read; the message names it.
        """


class TransformedImages(Dataset[tuple[Tensor, int]]):
    """Images as a model takes them: ``(transform(image), label)``.

    Args:
        images: the source.
        transform: from an RGB image to a tensor.
        indices: which of them, in this order; None: all.
    """

    def __init__(
        self, images: LabeledImages, transform: Callable[[Image], Tensor], indices: Sequence[int] | None = None
    ) -> None:
        self.images = images
        self.indices = range(len(images)) if indices is None else indices
        self._transform = transform

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.images.read(self.indices[index])
        return self._transform(image), label


def open_images(dataset: str, root: str | Path | None, split: str) -> LabeledImages:
    """Open one split.

    Args:
        dataset: ``""`` for folders and tars, or one of timm's names with a prefix ``torch/`` or ``hfds/``.
        root: the folder that holds the splits; for ``hfds/`` the cache folder or None.
        split: its name; for folders and tars also another usual name of it (``val``, ``validation``, ...) is found.

    Raises:
        ValueError: the split holds no images in one folder per class (see :func:`check_class_folders`), or the dataset
            is a stream or unknown.
        OSError: the folder is not there, or an image in it is not a file.
        ImportError: a library that reads it is missing.
    """
    if dataset.startswith(STREAMS):
        raise ValueError(
            f"dataset {dataset!r} is a stream without random access, which the order of a resumed run needs; "
            "use 'hfds/...', 'torch/...', or '' for folders and tars"
        )
    if dataset and not dataset.startswith(PREFIXES):  # timm would take root itself for the folder of every split
        raise ValueError(
            f"dataset must be '' for folders and tars, or a name that begins with {' or '.join(PREFIXES)}; got "
            f"{dataset!r}"
        )
    path = None if root is None else Path(root).expanduser()
    if dataset.startswith("hfds/"):
        _need_hugging_face_datasets(dataset)
    elif path is None:
        raise ValueError(f"root must be the folder that holds the images of dataset {dataset!r}; got None")
    elif not path.is_dir():
        raise FileNotFoundError(f"root: there is no folder {printable(path)}; give the one that holds the images")
    if dataset.startswith("torch/"):
        return _open_torchvision(dataset, path, split)  # type: ignore[arg-type]
    return _open_timm(dataset, path, split)


def check_same_classes(train: LabeledImages, other: LabeledImages, *, split: str) -> None:
    """Raise unless both splits have the same classes in the same order.

    Raises:
        ValueError: a class is in one of them only; the message names it.
    """
    if train.classes == other.classes:
        return
    missing = [name for name in train.classes if name not in other.classes]
    extra = [name for name in other.classes if name not in train.classes]
    raise ValueError(
        f"the classes of the {split} split are not those of the training split, so its labels would mean something "
        f"else: {_some('missing', missing)}, {_some('not in training', extra)}"
    )


class _ReaderImages:
    """The images of a reader of timm's."""

    def __init__(self, reader: Any, where: str) -> None:
        self._reader = reader
        self._where = where
        # Folders and Hugging Face datasets have one name for it, tars another.
        indices = getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None) or {}
        self.classes = tuple(map(printable, sorted(indices, key=indices.__getitem__)))

    def __len__(self) -> int:
        return len(self._reader)

    def read(self, index: int) -> tuple[Image, int]:
        try:
            file, label, *_ = self._reader[index]
            with file:
                return read_upright(file), _checked_label(label, self.classes)
        except Exception as error:  # the readers of timm raise errors of many kinds
            raise OSError(_unreadable(self._name(index), self._where, error)) from error

    def _name(self, index: int) -> str:
        try:
            return self._reader.filename(index)
        except Exception:  # of a row that cannot be read
            return f"number {index}"


class _TorchvisionImages:
    """The images of a dataset of torchvision's."""

    def __init__(self, dataset: Any, where: str) -> None:
        self._dataset = dataset
        self._where = where
        names: Any = getattr(dataset, "wnids", None) or getattr(dataset, "classes", ())
        self.classes = tuple(map(printable, names))
        if hasattr(dataset, "loader"):  # folders; the other datasets decode what they hold
            dataset.loader = _load

    def __len__(self) -> int:
        return len(self._dataset)

    def read(self, index: int) -> tuple[Image, int]:
        try:
            image, label = self._dataset[index]
            return as_rgb(image), _checked_label(label, self.classes)
        except Exception as error:  # torchvision's datasets raise errors of many kinds
            samples = getattr(self._dataset, "samples", None)
            raise OSError(_unreadable(samples[index][0] if samples else index, self._where, error)) from error


def _load(path: str) -> Image:
    return read_upright(Path(path))


def _open_timm(dataset: str, root: Path | None, split: str) -> LabeledImages:
    path = None if dataset else find_split(root, split)  # type: ignore[arg-type]
    where = f"{split} split of {dataset!r}" if path is None else printable(path)
    data = require("timm.data", extra="vision")
    if path is not None:
        _check_split(path, data.get_img_extensions())
    try:
        opened = data.create_dataset(dataset, root=root if path is None else str(path), split=split, search_split=False)
    except Exception as error:  # timm, tarfile and the hub's library raise errors of many kinds
        raise ValueError(f"{where} cannot be read as images in one folder per class: {one_line(error)}") from error
    images = _ReaderImages(opened.reader, where)
    if "" in images.classes:
        raise ValueError(f"{where} holds images outside of class folders; each must lie in the folder of its class")
    if path is not None and path.is_file():
        _check_folders_of_tar(opened.reader, where)
    return images


def _check_split(path: Path, suffixes: Sequence[str]) -> None:
    """Check the folder or the tar of a split, as far as the reader does not."""
    if path.is_dir():
        check_class_folders(path, suffixes)
        return
    try:
        check_regular(path)
    except OSError as error:
        raise OSError(f"{printable(path)} must be a folder or a tar ({one_line(error)})") from error


def _check_folders_of_tar(reader: Any, where: str) -> None:
    """Raise if a class comes from several folders: the reader takes the innermost one's name."""
    folders: defaultdict[int, set[str]] = defaultdict(set)
    for (member, _, parent), label in zip(reader.samples, reader.targets, strict=True):
        folders[int(label)].add(os.path.join(parent.name if parent else "", os.path.dirname(member.path)))
    several = next((sorted(names) for names in folders.values() if len(names) > 1), None)
    if several:
        raise ValueError(
            f"{where} holds one class in several folders, {_some('of them', list(map(printable, several)))}; images "
            "must lie in the folder of their class itself"
        )


def _open_torchvision(dataset: str, root: Path, split: str) -> LabeledImages:
    name = dataset.removeprefix("torch/").lower()
    if name in TWO_SPLITS and split not in (*TRAIN_NAMES, *EVALUATION_NAMES, "test"):
        raise ValueError(f"{dataset!r} has the splits 'train' and 'validation'; got {split!r}")
    path = find_split(root, split) if name in FOLDERS_OF_TORCHVISION else root
    try:
        opened = require("timm.data", extra="vision").create_dataset(
            dataset, root=str(path), split=split, search_split=False
        )
    except Exception as error:  # torchvision's datasets raise errors of many kinds
        where = printable(path)
        raise ValueError(f"{where} cannot be read as the {split} split of {dataset!r}: {one_line(error)}") from error
    return _TorchvisionImages(opened, f"{split} split of {dataset!r}")


def find_split(root: Path, split: str) -> Path:
    """The folder or the tar of a split in ``root``.

    Raises:
        FileNotFoundError: there is neither.
    """
    synonyms = next((names for names in (TRAIN_NAMES, EVALUATION_NAMES) if split in names), ())
    names = dict.fromkeys((split, *synonyms))
    for path in (path for name in names for path in (root / name, root / f"{name}.tar")):
        if path.exists():
            return path
    raise FileNotFoundError(
        f"{printable(root)} holds no folder or tar of the {split} split; looked for {', '.join(names)}"
    )


def _need_hugging_face_datasets(dataset: str) -> None:
    try:
        import datasets  # type: ignore[import-not-found,unused-ignore]  # noqa: F401
    except ModuleNotFoundError as error:
        raise ImportError(f"dataset {dataset!r} needs Hugging Face's library: pip install datasets") from error


def _checked_label(label: object, classes: Sequence[str]) -> int:
    """The label as an integer; -1, which some sets without labels have, is an error."""
    number = int(label)  # type: ignore[call-overload]
    if number < 0 or (classes and number >= len(classes)):
        raise ValueError(
            f"its label must be 0 to {len(classes) - 1}; got {number}" if classes else f"its label is {number}"
        )
    return number


def _unreadable(name: object, where: str, error: Exception) -> str:
    return f"image {printable(name)} of {where} cannot be read ({one_line(error)}); replace it or remove it"


def _some(what: str, names: Sequence[str]) -> str:
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f"{len(names)} {what}" + (f" ({shown})" if names else "")
