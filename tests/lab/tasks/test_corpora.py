from pathlib import Path

import numpy
import pytest

from preconditioned_attention.lab.data.byte_bpe import train_byte_bpe
from preconditioned_attention.lab.data.python_reference import load_python_reference
from preconditioned_attention.lab.tasks.causal_lm import CausalLM
from preconditioned_attention.lab.tasks.corpora import open_python_reference, open_tiny_stories

STORIES = [f"Once upon a time cat number {number} met a dog.\nThey ran." for number in range(40)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, stories in (("train", STORIES), ("valid", STORIES[::-1])):
        text = "".join(f"{story}\n<|endoftext|>\n" for story in stories)
        (tmp_path / f"TinyStories-{name}.txt").write_text(text, encoding="utf-8")
    train_byte_bpe(STORIES, vocab_size=300).save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.mark.parametrize("ends", [True, False])
def test_the_reference_begins_with_an_end_and_decodes_to_itself(ends: bool) -> None:
    corpus, text = open_python_reference(tokenizer=None, vocab_size=400, ends=ends), load_python_reference()
    for part in ("train", "validation", "test"):
        stream = getattr(corpus, part).tolist()
        assert stream[0] == 0
        assert stream.count(0) == 1 + ends * len(getattr(text, part))
        assert corpus.tokenizer.decode(stream) == "".join(getattr(text, part))
        assert corpus.description[f"{part} tokens"] == len(stream)
    assert corpus.tokenizer.get_vocab_size() == 400


@pytest.mark.parametrize("ends", [True, False])
def test_stories_are_tokenized_once_and_split(root: Path, ends: bool) -> None:
    corpus = open_tiny_stories(root, str(root / "tokenizer.json"), cache=root / "cache", ends=ends)
    assert isinstance(corpus.train, numpy.memmap)
    assert corpus.tokenizer.decode(corpus.train.tolist()) == "".join(STORIES)
    assert corpus.tokenizer.decode(corpus.validation.tolist()) == "".join(STORIES[::-1][::2])
    assert corpus.tokenizer.decode(corpus.test.tolist()) == "".join(STORIES[::-1][1::2])
    assert corpus.train.tolist().count(0) == 1 + 40 * ends
    made = (root / "cache" / "tokens-train.bin").stat().st_mtime_ns
    again = open_tiny_stories(root, str(root / "tokenizer.json"), cache=root / "cache", ends=ends)
    assert again.train.tolist() == corpus.train.tolist()
    assert (root / "cache" / "tokens-train.bin").stat().st_mtime_ns == made
    assert corpus.description["train stories"] == 40
    assert corpus.description["corpus"] == "TinyStories V1 (text)"


def test_a_changed_source_is_noticed(root: Path) -> None:
    open_tiny_stories(root, str(root / "tokenizer.json"), cache=root, ends=True)
    with (root / "TinyStories-train.txt").open("a", encoding="utf-8") as file:
        file.write("One more.\n")
    with pytest.raises(ValueError, match="was made from another source"):
        open_tiny_stories(root, str(root / "tokenizer.json"), cache=root, ends=True)


def test_a_model_of_stories(root: Path) -> None:
    options = {"n_layer": 1, "n_head": 2, "n_embd": 8, "context": 16}
    task = CausalLM(corpus="tiny-stories", root=str(root), tokenizer=str(root / "tokenizer.json"), **options)
    assert task.build_model()(*task.example_batch(2)).logits.shape == (2, 16, 300)
    assert task.baselines() == {}
    assert len(task.datasets().train) > 10
