"""IMDb reviews as the Long Range Arena reads them: bytes, and whether the review is positive.

Source: A. Maas et al., Learning Word Vectors for Sentiment Analysis, ACL 2011; the folder ``aclImdb`` of its release,
``{train,test}/{pos,neg}/*.txt``, a review per file.
"""

from __future__ import annotations

from pathlib import Path

from .sequences import BYTE_OFFSET, Sequences

LABELS = {"neg": 0, "pos": 1}


def read_imdb(folder: Path, split: str, *, length: int) -> Sequences:
    """The reviews of ``"train"`` or ``"test"``, by the names of their files: ids are bytes plus 1, label 1 is positive.

    Args:
        folder: ``aclImdb``.
        split: its subfolder.
        length: bytes from there on are left out.

    Raises:
        ValueError: a file is empty or is not UTF-8; the message names it.
        OSError: a folder is missing or has no reviews, or a file cannot be read.
    """
    texts: list[bytes] = []
    labels: list[int] = []
    for name, label in LABELS.items():
        paths = sorted((folder / split / name).glob("*.txt"))
        if not paths:
            raise FileNotFoundError(f"{folder / split / name} holds no *.txt; {folder} must be the folder aclImdb")
        for path in paths:
            texts.append(_read(path)[:length])
            labels.append(label)
    return Sequences(texts, labels, offset=BYTE_OFFSET)


def _read(path: Path) -> bytes:
    content = path.read_bytes()
    if not content:
        raise ValueError(f"{path} is empty; it must hold a review")
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line} is not UTF-8 (byte {error.start}: {error.reason}); mend it") from error
    return content
