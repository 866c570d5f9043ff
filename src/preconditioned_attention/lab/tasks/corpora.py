"""Corpora as streams of tokens."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..._extras import require
from ..data.byte_bpe import END, load_byte_bpe, tokenizer_hash, train_byte_bpe
from ..data.python_reference import load_python_reference
from ..data.tiny_stories import find_stories
from ..data.token_files import write_token_file

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer


@dataclass(frozen=True, kw_only=True)
class TokenCorpus:
    """Three streams, each of which begins with an end token, the tokenizer, and a description for reports."""

    train: NDArray[Any]
    validation: NDArray[Any]
    test: NDArray[Any]
    tokenizer: Tokenizer
    description: Mapping[str, Any]


def open_python_reference(*, tokenizer: str | None, vocab_size: int, ends: bool) -> TokenCorpus:
    """The Python reference, tokenized by a tokenizer that is loaded, or trained on its training part."""
    text = load_python_reference()
    found = train_byte_bpe(text.train, vocab_size=vocab_size) if tokenizer is None else load_byte_bpe(tokenizer)
    streams = {part: tokenize(getattr(text, part), found, ends=ends) for part in ("train", "validation", "test")}
    sizes = {f"{part} tokens": len(stream) for part, stream in streams.items()}
    description = {**text.describe(), **sizes, "tokenizer": tokenizer_hash(found)}
    return TokenCorpus(**streams, tokenizer=found, description=description)


def tokenize(documents: Iterable[str], tokenizer: Tokenizer, *, ends: bool) -> NDArray[Any]:
    """The documents' tokens end to end after an end token, each followed by one if ``ends``."""
    numpy = require("numpy", extra="train")
    end = tokenizer.token_to_id(END)
    after = [end] if ends else []
    stream = [end]
    for encoding in tokenizer.encode_batch_fast(list(documents)):
        stream += [*encoding.ids, *after]
    return numpy.array(stream, dtype=numpy.int64)


def open_tiny_stories(root: Path, tokenizer: str, *, cache: Path, ends: bool) -> TokenCorpus:
    """TinyStories, tokenized into files in ``cache`` the first time.

    The release has two splits: of its validation stories the first of every two validate, the others test.

    Raises:
        OSError, ValueError: the data or the tokenizer is missing or invalid.
    """
    found = load_byte_bpe(tokenizer)
    train, held_out = find_stories(root, "train"), find_stories(root, "validation")
    sources = {"train": (train, None), "validation": (held_out, 0), "test": (held_out, 1)}
    files = {}
    for part, (stories, remainder) in sources.items():
        source = {"version": stories.version, "form": stories.form, "files": stories.files, "every second": remainder}
        documents = stories.read() if remainder is None else itertools.islice(stories.read(), remainder, None, 2)
        files[part] = write_token_file(documents, found, cache / f"tokens-{part}.bin", ends=ends, source=source)
    counts = {
        f"{part} {name}": getattr(file, attribute)
        for part, file in files.items()
        for name, attribute in (("stories", "documents"), ("empty stories left out", "empty"), ("bytes", "bytes"))
    }
    description = {
        "corpus": f"TinyStories {train.version} ({train.form})",
        **counts,
        "tokenizer": tokenizer_hash(found),
    }
    streams = {part: file.tokens for part, file in files.items()}
    return TokenCorpus(**streams, tokenizer=found, description=description)
