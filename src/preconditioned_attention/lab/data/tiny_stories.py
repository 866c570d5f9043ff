"""Reader of TinyStories: text files with a separating line between stories, or Hugging Face ``datasets`` folders.

Source: R. Eldan and Y. Li, TinyStories: How Small Can Language Models Be and Still Speak Coherent English?, 2023,
arXiv 2305.07759; ``roneneldan/TinyStories`` on the hub. The text files come in two versions, the second written by
GPT-4 alone; the data set's own folders hold the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..._files import open_file
from .byte_bpe import END
from .hub import open_saved, read_parquet, text_in

VERSIONS = {"V1": "TinyStories-{}.txt", "V2": "TinyStoriesV2-GPT4-{}.txt"}
FILE_SPLITS = {"train": "train", "validation": "valid"}
COLUMN = "text"


@dataclass(frozen=True, kw_only=True)
class Stories:
    """One split: its source, and the stories, from the beginning with every call of ``read``.

    ``files`` holds names and sizes, by which a cache of tokens notices that they have changed.
    """

    version: str
    form: str
    files: dict[str, int]
    read: Callable[[], Iterator[str]]


def find_stories(root: Path, split: str) -> Stories:
    """The split ``"train"`` or ``"validation"`` in a folder.

    It may hold ``TinyStories-train.txt`` and ``TinyStories-valid.txt``, or ``TinyStoriesV2-GPT4-train.txt`` and
    ``TinyStoriesV2-GPT4-valid.txt``, or the data set's repository with ``data/train-*.parquet`` and
    ``data/validation-*.parquet``, or what ``save_to_disk`` of ``datasets`` wrote.

    Raises:
        FileNotFoundError: it holds none of these. ValueError: it holds two.
    """
    found = [stories for stories in (*_text_files(root, split), *_datasets(root, split)) if stories is not None]
    if not found:
        raise FileNotFoundError(
            f"{root} holds no {split} split of TinyStories; expected {VERSIONS['V1'].format(FILE_SPLITS[split])}, "
            f"{VERSIONS['V2'].format(FILE_SPLITS[split])}, data/{split}-*.parquet, or {split}/ beside dataset_dict.json"
        )
    if len(found) > 1:
        both = " and ".join(f"{one.version} ({one.form})" for one in found)
        raise ValueError(f"{root} holds the {split} split more than once, {both}; give a folder with one of them")
    return found[0]


def read_separated(path: Path, *, separator: str = END) -> Iterator[str]:
    """The documents of a text file in which a line of its own separates them; blank ones come as empty strings.

    Raises:
        ValueError: a line is not UTF-8, or the file is empty; the message names file and line.
        OSError: the file cannot be read.
    """
    lines: list[str] = []
    number = 0
    with open_file(path) as file:
        for number, raw in enumerate(file, start=1):
            line = _decode(raw, path, number)
            if line.strip() == separator:
                yield "".join(lines).strip()
                lines = []
            else:
                lines.append(line)
    if not number:
        raise ValueError(f"{path} is empty; it must hold text")
    last = "".join(lines).strip()
    if last:
        yield last


def _decode(raw: bytes, path: Path, number: int) -> str:
    if b"\0" in raw:
        raise ValueError(
            f"{path}, line {number} holds NUL characters, as a file that was not written in full does; write it again"
        )
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}, line {number}: byte {error.start + 1} of the line, 0x{raw[error.start]:02x}, is not UTF-8 "
            f"({error.reason}); fix the file, or convert it to UTF-8"
        ) from error


def _text_files(root: Path, split: str) -> Iterator[Stories]:
    for version, pattern in VERSIONS.items():
        path = root / pattern.format(FILE_SPLITS[split])
        if path.exists():
            yield Stories(version=version, form="text", files=_sizes([path]), read=partial(read_separated, path))


def _datasets(root: Path, split: str) -> Iterator[Stories]:
    parquet = sorted((root / "data").glob(f"{split}-*.parquet"))
    if parquet:
        yield Stories(version="V1", form="parquet", files=_sizes(parquet), read=partial(_read_parquet, parquet))
    if (root / "dataset_dict.json").exists():
        arrow = sorted((root / split).glob("*.arrow"))
        yield Stories(version="V1", form="datasets", files=_sizes(arrow), read=partial(_read_saved, root / split))


def _read_parquet(files: list[Path]) -> Iterator[str]:
    return _texts(read_parquet(files, (COLUMN,)))


def _read_saved(folder: Path) -> Iterator[str]:
    rows = open_saved(folder)
    return _texts((f"{folder}, row {number}", row) for number, row in enumerate(rows, start=1))


def _texts(rows: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[str]:
    for where, row in rows:
        yield text_in(row, COLUMN, where).strip()


def _sizes(paths: list[Path]) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in paths}
