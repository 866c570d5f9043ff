"""Memory-mapped files of the tokens of texts that are too large for memory.

``name.bin`` holds unsigned integers in the machine's byte order, ``name.json`` their source, their number and their
SHA-256. The latter is written last, so a file without it is not complete. While a file is being written its parts have
``.part`` in their names; a writer that was killed continues where it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from filelock import FileLock  # torch brings it

from ..._extras import require
from ..._files import naming_file, open_file, publish, read_json, write_atomically
from .byte_bpe import END, bytes_of_tokens, tokenizer_hash

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

DOCUMENTS_AT_ONCE = 1000
ITEM_SIZES = {"uint16": 2, "uint32": 4}  # bytes of a token, by dtype


@dataclass(frozen=True, kw_only=True)
class TokenFile:
    """A complete file of tokens.

    Attributes:
        path: of the ``.bin``.
        tokens: the tokens, read from the disk as they are used.
        documents, empty: how many documents there are, and how many more were left out because they were empty.
        bytes: of all documents together.
    """

    path: Path
    tokens: NDArray[Any]
    documents: int
    empty: int
    bytes: int


@dataclass(kw_only=True)
class _Progress:
    """How much of the source is in the file."""

    read: int = 0
    documents: int = 0
    empty: int = 0
    bytes: int = 0
    tokens: int = 0


def write_token_file(
    documents: Iterable[str], tokenizer: Tokenizer, path: Path, *, ends: bool, source: Mapping[str, Any]
) -> TokenFile:
    """Tokenize documents into ``path`` and open it; an existing file of the same source and tokenizer is opened.

    The stream is an end token, then every document that is not empty, each followed by an end token if ``ends``.
    Of several processes that open the same file at once, one writes it and the others wait.

    Args:
        documents: the source; the same on every call, because a resumed writer skips what was read before.
        tokenizer: byte-level, with an end token.
        path: of the ``.bin`` to write.
        ends: whether an end token follows each document.
        source: what ``documents`` are, such as file names and sizes, as values that JSON can hold.

    Raises:
        ValueError: no document holds text, or ``path`` holds tokens of another source or tokenizer, or was changed.
        OSError: the source cannot be read, or the file not be written; what was written is kept for the next call.
    """
    making = _making(tokenizer, ends, source)
    with naming_file(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.with_suffix(".json").exists():
            _write(documents, tokenizer, path, ends, making)
        return open_token_file(path, making=making)


def open_token_file(path: Path, *, making: Mapping[str, Any] | None = None) -> TokenFile:
    """Open what :func:`write_token_file` wrote, after comparing its SHA-256 with the recorded one.

    Raises:
        ValueError: it differs, or ``making`` differs from the file's. OSError: it cannot be read.
    """
    remedy = f"remove {path.with_suffix('.json')} to write it again, or choose another folder for it"
    header = _read_header(path.with_suffix(".json"), remedy)
    if making is not None and header["making"] != making:
        changed = [name for name in making if header["making"].get(name) != making[name]]
        raise ValueError(f"{path} was made from another {' and another '.join(changed)}; {remedy}")
    if _sha256(path) != header["sha256"]:
        raise ValueError(f"{path} has changed since it was written (its SHA-256 differs); {remedy}")
    if path.stat().st_size != header["tokens"] * _item_size(header["making"]):
        raise ValueError(f"{path} must hold {header['tokens']} tokens of {header['making']['dtype']}; {remedy}")
    tokens = require("numpy", extra="train").memmap(path, dtype=header["making"]["dtype"], mode="r")
    counts = {name: header[name] for name in ("documents", "empty", "bytes")}
    return TokenFile(path=path, tokens=tokens, **counts)


def _read_header(path: Path, remedy: str) -> dict[str, Any]:
    """What a complete file of tokens says of itself, checked."""
    header = read_json(path)
    making = header.get("making")
    counts = [header.get(field.name) for field in dataclasses.fields(_Progress)]
    is_counted = all(type(count) is int and count >= 0 for count in counts)
    is_made = isinstance(making, dict) and making.get("dtype") in ITEM_SIZES
    if not (is_counted and is_made and isinstance(header.get("sha256"), str)):
        raise ValueError(f"{path} does not describe a file of tokens: counts, sha256 and making are expected; {remedy}")
    return header


def _making(tokenizer: Tokenizer, ends: bool, source: Mapping[str, Any]) -> dict[str, Any]:
    dtype = "uint16" if tokenizer.get_vocab_size() <= 2**16 else "uint32"
    making = {"tokenizer": tokenizer_hash(tokenizer), "end tokens": ends, "dtype": dtype, "source": dict(source)}
    return json.loads(json.dumps(making))  # as it is read back


def _write(documents: Iterable[str], tokenizer: Tokenizer, path: Path, ends: bool, making: dict[str, Any]) -> None:
    part, state = path.with_suffix(".part"), path.with_suffix(".part.json")
    progress = _resume(part, state, making)
    with naming_file(path), part.open("r+b" if part.exists() else "w+b") as file:
        file.truncate(progress.tokens * _item_size(making))
        file.seek(0, os.SEEK_END)
        _append(documents, tokenizer, file, progress, ends, making, state)
        if not progress.documents:
            raise ValueError(f"the source of {path} holds no text: {json.dumps(making['source'])}")
    sha256 = _sha256(part)
    publish(part, path)
    header = {**dataclasses.asdict(progress), "sha256": sha256, "making": making}
    write_atomically(path.with_suffix(".json"), json.dumps(header, indent=2) + "\n")
    state.unlink(missing_ok=True)


def _resume(part: Path, state: Path, making: dict[str, Any]) -> _Progress:
    if not (part.exists() and state.exists()):
        return _Progress()
    saved = read_json(state)
    progress, names = saved.get("progress"), {field.name for field in dataclasses.fields(_Progress)}
    if saved.get("making") != making:
        return _Progress()
    if not isinstance(progress, dict) or set(progress) != names or any(type(n) is not int for n in progress.values()):
        raise ValueError(f"{state} does not say how much of {part} is written; remove it to begin again")
    return _Progress(**progress)


def _append(
    documents: Iterable[str],
    tokenizer: Tokenizer,
    file: BinaryIO,
    progress: _Progress,
    ends: bool,
    making: dict[str, Any],
    state: Path,
) -> None:
    """Write the remaining documents; after every batch file and progress are synchronized to disk."""
    numpy = require("numpy", extra="train")
    end = tokenizer.token_to_id(END)
    sizes = bytes_of_tokens(tokenizer).numpy()
    left = itertools.islice(iter(documents), progress.read, None)
    while batch := list(itertools.islice(left, DOCUMENTS_AT_ONCE)):
        texts = [text for text in batch if text]
        stream = [] if progress.tokens else [end]
        for encoding in tokenizer.encode_batch_fast(texts):
            stream += [*encoding.ids, end] if ends else encoding.ids
        size = sum(len(text.encode()) for text in texts)
        tokens = numpy.array(stream, dtype=making["dtype"])
        if int(sizes[tokens].sum()) != size:
            raise ValueError("the tokenizer loses bytes of the text (a normalizer?); its tokens must hold them all")
        file.write(tokens.tobytes())
        progress.read += len(batch)
        progress.documents += len(texts)
        progress.empty += len(batch) - len(texts)
        progress.bytes += size
        progress.tokens += len(tokens)
        file.flush()
        os.fsync(file.fileno())
        write_atomically(state, json.dumps({"making": making, "progress": dataclasses.asdict(progress)}))


def _item_size(making: Mapping[str, Any]) -> int:
    return ITEM_SIZES[making["dtype"]]


def _sha256(path: Path) -> str:
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
