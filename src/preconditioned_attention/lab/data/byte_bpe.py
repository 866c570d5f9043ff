"""Byte-level byte-pair encoding with the ``tokenizers`` library: trained on a text, or read from a file.

Every token but the end of a document encodes known bytes, so the bytes of a sequence of tokens can be counted exactly.
Source: R. Sennrich et al., Neural Machine Translation of Rare Words with Subword Units, ACL 2016; on bytes: A. Radford
et al., Language Models are Unsupervised Multitask Learners, 2019.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..._checks import check_integer
from ..._extras import require
from ..._files import read_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END = "<|endoftext|>"
BYTES = 256


def train_byte_bpe(texts: Iterable[str], *, vocab_size: int, specials: Sequence[str] = (END,)) -> Tokenizer:
    """A tokenizer of at most ``vocab_size`` tokens: ``specials``, 256 bytes, the most frequent merges in ``texts``.

    The same texts give the same tokenizer. A special token in a text is encoded as plain characters.

    Raises:
        ValueError: ``vocab_size`` has no room for the bytes. ImportError: the extra ``language`` is missing.
    """
    check_integer("vocab_size", vocab_size, minimum=BYTES + len(specials))
    library = require("tokenizers", extra="language")
    byte_level = library.pre_tokenizers.ByteLevel
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = byte_level(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(specials),
        initial_alphabet=byte_level.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.encode_special_tokens = True
    return tokenizer


def load_byte_bpe(source: str) -> Tokenizer:
    """A byte-level tokenizer with ``<|endoftext|>``, such as GPT-2's.

    Args:
        source: the path of a ``tokenizer.json``, or a model's name on the hub, such as ``"openai-community/gpt2"``.

    Raises:
        OSError: it is missing, or cannot be read. ValueError: it is another kind of tokenizer.
    """
    tokenizer = read_tokenizer(Path(source)) if source.endswith(".json") else _from_hub(source)
    if tokenizer.token_to_id(END) is None:
        raise ValueError(f"tokenizer {source!r} must have the token {END}")
    tokenizer.encode_special_tokens = True
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a ``tokenizer.json``.

    Raises:
        OSError: it cannot be read. ValueError: it holds something else.
    """
    library = require("tokenizers", extra="language")
    text = read_text(path, kind="tokenizer")
    try:
        return library.Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare exceptions
        raise ValueError(f"tokenizer {path} is not a tokenizer.json that can be read: {error}") from error


def _from_hub(name: str) -> Tokenizer:
    try:
        return require("tokenizers", extra="language").Tokenizer.from_pretrained(name)
    except Exception as error:  # the library raises bare exceptions
        raise OSError(
            f"tokenizer {name!r} cannot be loaded ({error}); give the path of a tokenizer.json, or the name of a "
            "model that the hub or its cache has"
        ) from error


def bytes_of_tokens(tokenizer: Tokenizer) -> Tensor:
    """How many bytes each token encodes, ``(vocabulary,)``; 0 for special ones such as the end.

    Raises:
        ValueError: the tokenizer is not byte-level: some token is no sequence of bytes.
    """
    library = require("tokenizers", extra="language")
    alphabet = set(library.pre_tokenizers.ByteLevel.alphabet())
    special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    sizes = torch.zeros(tokenizer.get_vocab_size(), dtype=torch.long)
    for token, number in tokenizer.get_vocab().items():
        if number in special:
            continue
        if not set(token) <= alphabet:
            raise ValueError(f"the tokenizer must be byte-level: its token {token!r} is no sequence of bytes")
        sizes[number] = len(token)  # its alphabet has one character per byte
    return sizes


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """SHA-256 of the tokenizer's JSON."""
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer in the form that ``AutoTokenizer`` of transformers reads."""
    transformers = require("transformers", extra="language")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, bos_token=END)
    fast.save_pretrained(str(folder))
