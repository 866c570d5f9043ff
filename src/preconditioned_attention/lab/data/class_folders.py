"""The check of a folder with one folder of images per class, before a reader walks through it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from .image_files import SUFFIXES, check_regular, one_line, printable

Identity = tuple[int, int]
"""Device and number of a folder, the same for every link to it."""


def check_class_folders(folder: Path, suffixes: Sequence[str]) -> None:
    """Raise unless every class folder in ``folder`` holds images, and nothing that would be read wrongly or left out.

    timm's reader takes the innermost folder of an image for its class, follows links round in circles, leaves out
    images of other formats, folders that it may not list and classes without images, and waits for ever on a FIFO.

    Args:
        folder: of one split.
        suffixes: of the image files that the reader takes.

    Raises:
        ValueError: a class folder is empty, has folders with images or an image of another format, or a link leads back
            to a folder above it.
        OSError: an image is not a file, or something cannot be listed.
    """
    above = {_identity(folder)}
    counts: dict[str, int] = {}
    for entry in _entries(folder):
        if _is_folder(entry):
            inside = above | {_checked_identity(entry, above)}
            counts[entry.path] = sum(_is_image(own, suffixes, inside) for own in _entries(Path(entry.path)))
        else:
            _is_image(entry, suffixes, above)
    empty = sorted(path for path, count in counts.items() if not count and not os.path.basename(path).startswith("."))
    if empty and any(counts.values()):  # of a split without any image the reader says so
        raise ValueError(
            f"class folder {printable(empty[0])} holds no image ({', '.join(suffixes)}); add some or remove "
            "it, in every split"
        )


def _is_image(entry: os.DirEntry[str], suffixes: Sequence[str], above: set[Identity]) -> bool:
    """Whether an entry of a class folder is an image; raises if it is one that must not be there."""
    name, suffix = printable(entry.path), os.path.splitext(entry.name)[1].lower()
    if _is_folder(entry):
        if suffix in SUFFIXES:
            raise OSError(f"{name} is a folder, not an image; rename it or remove it")
        _check_no_images(entry, suffixes, above)
        return False
    if suffix in suffixes:
        try:
            if not entry.is_file(follow_symlinks=False):
                check_regular(Path(entry.path))
        except OSError as error:
            raise OSError(f"image {name} cannot be read ({one_line(error)}); replace it or remove it") from error
    elif suffix in SUFFIXES:
        raise ValueError(
            f"image {name} would be left out: only {', '.join(suffixes)} are read; convert it or remove it"
        )
    return suffix in suffixes


def _check_no_images(folder: os.DirEntry[str], suffixes: Sequence[str], above: set[Identity]) -> None:
    """Raise if there are images below a folder within a class folder."""
    inside = above | {_checked_identity(folder, above)}
    for entry in _entries(Path(folder.path)):
        if _is_image(entry, suffixes, inside):
            raise ValueError(
                f"image {printable(entry.path)} lies in a folder within a class folder; images must lie in the folder "
                "of their class itself"
            )


def _checked_identity(folder: os.DirEntry[str], above: set[Identity]) -> Identity:
    identity = _identity(Path(folder.path))
    if identity in above:
        raise ValueError(f"{printable(folder.path)} is a link to a folder above it; remove it")
    return identity


def _identity(folder: Path) -> Identity:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise OSError(f"folder {printable(folder)} cannot be listed: {reason}") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads round in a circle
        return False
