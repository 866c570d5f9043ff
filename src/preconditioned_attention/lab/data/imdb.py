"""IMDb reviews as the Long Range Arena reads them: bytes, and whether the review is positive.

Source: A. Maas et al., Learning Word Vectors for Sentiment Analysis, ACL 2011; the folder ``aclImdb`` of its release,
``{train,test}/{pos,neg}/*.txt``, a review per file, or the parquet files of ``stanfordnlp/imdb`` on the hub.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..._files import read_bytes
from .hub import find_parquet, read_parquet, text_in
from .sequences import BYTE_OFFSET, Sequences

LABELS = {"neg": 0, "pos": 1}


def read_imdb(folder: Path, split: str, *, length: int) -> Sequences:
    """The reviews of ``"train"`` or ``"test"``: ids are bytes plus 1, label 1 is positive.

    Args:
        folder: ``aclImdb``, whose reviews come by the names of their files; or a folder with ``train-*.parquet`` and
            ``test-*.parquet``, also in ``plain_text/``, whose reviews come in the order of the rows.
        split: which of the two.
        length: bytes from there on are left out.

    Raises:
        ValueError: a review is empty, a file is not UTF-8 or a label not 0 or 1; the message names file and row.
        OSError: the folder holds neither, or a file cannot be read.
    """
    parquet = find_parquet(folder, split)
    reviews = list(_of_hub(parquet) if parquet else _of_release(folder, split))
    return Sequences([text[:length] for text, _ in reviews], [label for _, label in reviews], offset=BYTE_OFFSET)


def _of_release(folder: Path, split: str) -> Iterator[tuple[bytes, int]]:
    for name, label in LABELS.items():
        paths = sorted((folder / split / name).glob("*.txt"))
        if not paths:
            raise FileNotFoundError(
                f"{folder / split / name} holds no *.txt; {folder} must be the folder aclImdb, or hold "
                f"{split}-*.parquet (also in plain_text/)"
            )
        for path in paths:
            yield _read(path), label


def _of_hub(files: list[Path]) -> Iterator[tuple[bytes, int]]:
    for where, row in read_parquet(files, ("text", "label")):
        label, text = row["label"], text_in(row, "text", where)
        if type(label) is not int or label not in LABELS.values():
            raise ValueError(f"{where}: the label must be 0 or 1; got {label!r}")
        if not text:
            raise ValueError(f"{where}: the text is empty; it must hold a review")
        yield text.encode("utf-8"), label


def _read(path: Path) -> bytes:
    content = read_bytes(path)
    if b"\0" in content:
        raise ValueError(f"{path} holds NUL characters, as a file that was not written in full does; write it again")
    if not content:
        raise ValueError(f"{path} is empty; it must hold a review")
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line} is not UTF-8 (byte {error.start}: {error.reason}); fix it") from error
    return content
