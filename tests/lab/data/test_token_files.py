import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
from tokenizers import Tokenizer, normalizers

from preconditioned_attention.lab.data import token_files
from preconditioned_attention.lab.data.byte_bpe import train_byte_bpe
from preconditioned_attention.lab.data.token_files import open_token_file, write_token_file

DOCUMENTS = [f"story {number} of a cat — and {number % 7} dogs" for number in range(25)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_byte_bpe(DOCUMENTS, vocab_size=300)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_files, "DOCUMENTS_AT_ONCE", 4)


def failing(documents: list[str], after: int) -> Iterator[str]:
    yield from documents[:after]
    raise KeyboardInterrupt


@pytest.mark.parametrize("ends", [True, False])
def test_what_was_written_reads_back(tokenizer: Tokenizer, tmp_path: Path, ends: bool) -> None:
    documents = ["", *DOCUMENTS, ""]
    written = write_token_file(iter(documents), tokenizer, tmp_path / "a" / "t.bin", ends=ends, source={"n": 1})
    expected = [0]
    for document in DOCUMENTS:
        expected += tokenizer.encode(document).ids + [0] * ends
    assert written.tokens.tolist() == expected
    assert written.tokens.dtype == numpy.uint16
    assert isinstance(written.tokens, numpy.memmap)
    assert (written.documents, written.empty) == (25, 2)
    assert written.bytes == sum(len(document.encode()) for document in DOCUMENTS)
    again = open_token_file(tmp_path / "a" / "t.bin")
    assert again.tokens.tolist() == expected
    assert sorted(path.name for path in (tmp_path / "a").iterdir() if path.suffix != ".lock") == ["t.bin", "t.json"]


def test_a_complete_file_is_not_made_again(tokenizer: Tokenizer, tmp_path: Path) -> None:
    first = write_token_file(DOCUMENTS, tokenizer, tmp_path / "t.bin", ends=True, source={})
    second = write_token_file(failing(DOCUMENTS, 0), tokenizer, tmp_path / "t.bin", ends=True, source={})
    assert second.tokens.tolist() == first.tokens.tolist()


@pytest.mark.parametrize("after", [0, 3, 4, 14, 25])
@pytest.mark.parametrize("torn", [False, True])
def test_a_killed_writer_goes_on_where_it_was(tokenizer: Tokenizer, tmp_path: Path, after: int, torn: bool) -> None:
    whole = write_token_file(DOCUMENTS, tokenizer, tmp_path / "whole.bin", ends=True, source={})
    path = tmp_path / "t.bin"
    with pytest.raises(KeyboardInterrupt):
        write_token_file(failing(DOCUMENTS, after), tokenizer, path, ends=True, source={})
    assert not path.exists()
    if torn:  # killed within a write: bytes that the progress does not know of
        with path.with_suffix(".part").open("ab") as file:
            file.write(b"\x07\x07\x07")
    read = itertools.count()
    resumed = write_token_file((DOCUMENTS[next(read)] for _ in DOCUMENTS), tokenizer, path, ends=True, source={})
    assert resumed.tokens.tolist() == whole.tokens.tolist()
    assert (resumed.documents, resumed.bytes) == (whole.documents, whole.bytes)


def test_parts_of_another_making_are_not_gone_on_with(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "t.bin"
    with pytest.raises(KeyboardInterrupt):
        write_token_file(failing(["other"] * 25, 12), tokenizer, path, ends=True, source={"file": "other"})
    whole = write_token_file(DOCUMENTS, tokenizer, tmp_path / "whole.bin", ends=True, source={})
    assert write_token_file(DOCUMENTS, tokenizer, path, ends=True, source={}).tokens.tolist() == whole.tokens.tolist()


def test_a_file_of_another_making_or_with_a_changed_byte_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "t.bin"
    write_token_file(DOCUMENTS, tokenizer, path, ends=True, source={"size": 1})
    with pytest.raises(
        ValueError, match=r"t\.bin was made from another end tokens and another source; remove .*t\.json"
    ):
        write_token_file(DOCUMENTS, tokenizer, path, ends=False, source={"size": 2})
    content = bytearray(path.read_bytes())
    content[10] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"t\.bin has changed since it was written"):
        open_token_file(path)
    path.write_bytes(content[:-2])
    with pytest.raises(ValueError, match=r"t\.bin has changed since it was written"):
        open_token_file(path)


def test_no_text_and_lost_bytes(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'holds no text: \{"file": "x"\}'):
        write_token_file(["", ""], tokenizer, tmp_path / "t.bin", ends=True, source={"file": "x"})
    assert not (tmp_path / "t.json").exists()
    lowering = Tokenizer.from_str(tokenizer.to_str())
    lowering.normalizer = normalizers.Strip()
    with pytest.raises(ValueError, match="the tokenizer loses bytes of the text"):
        write_token_file(["  a cat  "], lowering, tmp_path / "u.bin", ends=True, source={})


def test_large_vocabularies_take_four_bytes(tokenizer: Tokenizer, tmp_path: Path) -> None:
    large = Tokenizer.from_str(tokenizer.to_str())
    large.add_tokens([f"word{number}" for number in range(2**16)])
    write_token_file(DOCUMENTS, large, tmp_path / "t.bin", ends=True, source={})
    assert json.loads((tmp_path / "t.json").read_text())["making"]["dtype"] == "uint32"
    assert open_token_file(tmp_path / "t.bin").tokens.tolist()[:4] == [0, *tokenizer.encode(DOCUMENTS[0]).ids[:3]]
