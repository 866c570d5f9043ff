from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from preconditioned_attention.lab.data.byte_bpe import (
    END,
    bytes_of_tokens,
    load_byte_bpe,
    save_tokenizer,
    tokenizer_hash,
    train_byte_bpe,
)

TEXTS = ["the cat sat on the mat and the other cat", "a naïve café — no end"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_byte_bpe(TEXTS, vocab_size=280)


def test_the_same_texts_give_the_same_tokenizer(tokenizer: Tokenizer) -> None:
    assert tokenizer_hash(train_byte_bpe(TEXTS, vocab_size=280)) == tokenizer_hash(tokenizer)
    assert tokenizer_hash(train_byte_bpe(TEXTS[:1], vocab_size=280)) != tokenizer_hash(tokenizer)
    assert tokenizer.get_vocab_size() == 280
    assert tokenizer.token_to_id(END) == 0


@settings(derandomize=True, max_examples=100)
@given(st.text())
def test_every_byte_of_any_text_is_in_one_token(tokenizer: Tokenizer, text: str) -> None:
    numbers = tokenizer.encode(text).ids
    assert int(bytes_of_tokens(tokenizer)[numbers].sum()) == len(text.encode())
    assert tokenizer.decode(numbers) == text


def test_the_end_inside_a_text_is_text(tokenizer: Tokenizer) -> None:
    numbers = tokenizer.encode(f"a{END}b").ids
    assert 0 not in numbers
    assert bytes_of_tokens(tokenizer)[0] == 0
    assert tokenizer.decode(numbers) == f"a{END}b"


def test_from_a_file_and_from_a_folder_of_transformers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    save_tokenizer(tokenizer, tmp_path)
    loaded = load_byte_bpe(str(tmp_path / "tokenizer.json"))
    assert loaded.encode(TEXTS[1]).ids == tokenizer.encode(TEXTS[1]).ids
    assert loaded.encode(END).ids == tokenizer.encode(END).ids
    auto = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert auto(TEXTS[0])["input_ids"] == tokenizer.encode(TEXTS[0]).ids
    assert (auto.eos_token, auto.eos_token_id) == (END, 0)


def test_what_cannot_be_used(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vocab_size must be at least 257; got 256"):
        train_byte_bpe(TEXTS, vocab_size=256)
    with pytest.raises(OSError, match=r"tokenizer .*no\.json cannot be read"):
        load_byte_bpe(str(tmp_path / "no.json"))
    words = Tokenizer(models.WordLevel({"é cat": 0, "[UNK]": 1}, unk_token="[UNK]"))
    words.pre_tokenizer, words.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    words.save(str(tmp_path / "words.json"))
    with pytest.raises(ValueError, match=r"must have the token <\|endoftext\|>"):
        load_byte_bpe(str(tmp_path / "words.json"))
    with pytest.raises(ValueError, match="must be byte-level: its token 'é cat'"):
        bytes_of_tokens(words)
