"""Bad input of texts, configurations and command lines: exit code 2, one line that names the file, no half files."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from preconditioned_attention._files import read_json, write_atomically
from preconditioned_attention.cli import main
from preconditioned_attention.diagnostics.monitor_file import read_records
from preconditioned_attention.lab.data.aan import read_aan
from preconditioned_attention.lab.data.byte_bpe import load_byte_bpe
from preconditioned_attention.lab.data.glue import read_glue
from preconditioned_attention.lab.data.imdb import read_imdb
from preconditioned_attention.lab.data.listops import read_listops
from preconditioned_attention.lab.data.tiny_stories import find_stories
from preconditioned_attention.lab.data.token_files import open_token_file
from preconditioned_attention.lab.data.tokenized import TokenizedRows, open_tokenized
from preconditioned_attention.lab.models.crammed_bert import load_crammed_bert
from preconditioned_attention.lab.training import TrainConfig

RECIPE = """\
train:
  task: masked-lm
  task_options: {vocab_size: 300, width: 16, layers: 1, num_heads: 2, feed_forward: 16, context: 16}
  steps: 2
  batch_size: 8
  learning_rate: 1e-3
compare:
  seeds: [0]
  learning_rates: [1e-3]
"""
BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n" for before, name in zip("abcdefg", "bcdefgh", strict=True)
)


NO_TASK_OF_GLUE = RECIPE.replace("masked-lm", "glue").replace("task_options: {vocab_size: 300,", "# {")


def changed(old: str, new: str) -> bytes:
    assert old in RECIPE
    return RECIPE.replace(old, new).encode()


def with_option(text: str) -> bytes:
    return changed("  steps: 2\n", f"  steps: 2\n  {text}\n")


def with_compare(text: str) -> bytes:
    return f"{RECIPE}  {text}\n".encode()


# name of the case: content of the recipe, and what the message says besides the file's name
RECIPES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "must hold a mapping"),
    "comments alone": (b"# nothing\n", "must hold a mapping"),
    "a list": (b"- 1\n", "must hold a mapping"),
    "a word": (b"word", "must hold a mapping"),
    "cut short": (RECIPE[:60].encode(), "is not valid YAML: line 3"),
    "a key twice": (
        with_option("steps: 3"),
        "line 5, column 3: the key 'steps' stands there a second time, after line 4",
    ),
    "a section twice": (RECIPE.encode() * 2, "the key 'train' stands there a second time"),
    "a key twice in braces": (changed("{vocab", "{width: 3, vocab"), "the key 'width' stands there a second time"),
    "deep lists": (b"train: " + b"[" * 1500 + b"]" * 1500, "levels"),
    "deep mappings": (b"train: " + b"{a: " * 1500 + b"1" + b"}" * 1500, "levels"),
    "deep enough to parse": (b"train: " + b"[" * 60 + b"]" * 60, "levels"),
    "aliases without end": (BOMB.encode() + RECIPE.encode(), "values"),
    "a value in itself": (changed("{vocab", "&x {more: *x, vocab"), "a value holds itself"),
    "a tag of Python": (changed("steps: 2", "steps: !!python/object/apply:os.getpid []"), "line 4, column 10"),
    "a tag of its own": (changed("steps: 2", "steps: !mine 2"), "line 4, column 10"),
    "tabs": (changed("  steps", "\tsteps"), "line 4, column 1"),
    "two documents": (f"{RECIPE}---\n{RECIPE}".encode(), "another document"),
    "a list as a key": (with_option("[1, 2]: 3"), "line 5, column 3"),
    "a number as an option": (with_option("1: 2"), "unknown training option 1"),
    "null as an option": (with_option("~: 2"), "unknown training option None"),
    "a number as an option of the task": (changed("{vocab", "{1: 2, vocab"), "unknown option of task 'masked-lm': 1"),
    "octal": (changed("steps: 2", "steps: 010"), "line 4, column 10: 010 could be meant in base 8"),
    "base 60": (changed("steps: 2", "steps: 1:30"), "1:30 could be meant in base"),
    "5000 digits": (changed("steps: 2", f"steps: {'1' * 5000}"), "a number has 5000 digits"),
    "beyond every float": (changed("learning_rate: 1e-3", f"learning_rate: 1{'0' * 400}"), "beyond every float"),
    "UTF-16": (RECIPE.encode("utf-16"), "is not UTF-8 (line 1, byte 0xff"),
    "UTF-16 without a mark": (RECIPE.encode("utf-16-le"), "is not valid YAML"),
    "Latin 1": (f"{RECIPE}# caf\xe9\n".encode("latin-1"), "is not UTF-8 (line 10, byte 0xe9"),
    "NUL": (RECIPE.encode() + b"\0\n", "is not valid YAML"),
    "no sections": (b"train:\ncompare:\n", "must have a section 'train'"),
    "an unknown section": (RECIPE.replace("compare:", "comparee:").encode(), "did you mean 'compare'?"),
    "an unknown option": (changed("  learning_rate:", "  learning_rat:"), "did you mean 'learning_rate'?"),
    "an unknown option of the task": (changed("vocab_size", "vocab_sizee"), "did you mean 'vocab_size'?"),
    "an unknown option of the comparison": (with_compare("seed: [0]"), "did you mean 'seeds'?"),
    "an unknown task": (changed("masked-lm", "maskd-lm"), "did you mean 'masked-lm'?"),
    "a task without what it needs": (NO_TASK_OF_GLUE.encode(), "needs the option task"),
    "a truth value as the task": (changed("masked-lm", "yes"), "task must be the name of a task; got True"),
    "a date as the task": (changed("masked-lm", "2020-01-01"), "unknown task '2020-01-01'"),
    "options in a list": (changed("task_options: {", "task_options: [{").replace(b"}", b"}]"), "must be a mapping"),
    "infinity": (changed("learning_rate: 1e-3", "learning_rate: .inf"), "learning_rate must be"),
    "not a number": (changed("learning_rate: 1e-3", "learning_rate: .nan"), "learning_rate must be"),
    "a learning rate of 1e30": (changed("learning_rate: 1e-3", "learning_rate: 1e30"), "at most 10000"),
    "a learning rate in quotes": (changed("learning_rate: 1e-3", "learning_rate: '1e-3'"), "must be a number"),
    "a learning rate that is true": (changed("learning_rate: 1e-3", "learning_rate: true"), "must be a number"),
    "a negative learning rate": (changed("learning_rate: 1e-3", "learning_rate: -1e-3"), "must be more than 0"),
    "10^12 steps": (changed("steps: 2", "steps: 1000000000000"), "steps must be at most 1000000000"),
    "half a step": (changed("steps: 2", "steps: 2.5"), "steps must be an integer"),
    "no steps": (changed("steps: 2", "steps: 0"), "steps must be at least 1"),
    "a batch of 10^12": (changed("batch_size: 8", "batch_size: 1000000000000"), "batch_size must be at most"),
    "a million workers": (with_option("workers: 1000000"), "workers must be at most 256"),
    "a negative seed": (with_option("seed: -1"), "seed must be at least 0"),
    "milestones of two types": (with_option("milestones: [1, a]"), "milestones must be an integer"),
    "betas in a mapping": (with_option("betas: {a: 1, b: 2}"), "betas must be two numbers"),
    "a precision in a list": (with_option("precision: [float32]"), "precision must be one of"),
    "a word as the arm": (with_option("precondition: row"), "precondition must be an Arm"),
    "an unknown gradient": (with_option("precondition: {gradient: ful}"), "precondition: gradient must be one of"),
    "a monitor that never comes": (with_option("monitor: {every: 0}"), "monitor: every must be at least 1"),
    "an unknown option of the monitor": (with_option("monitor: {evry: 1}"), "did you mean 'every'?"),
    "arms in a list": (with_compare("arms: [plain]"), "arms must map names of arms"),
    "a number as an arm": (with_compare("arms: {plain: null, x: 3}"), "arms: 'x' must have options"),
    "an arm outside its folder": (with_compare("arms: {plain: null, ../x: null}"), "a name is made of letters"),
    "a number as a variant": (with_compare("variants: {x: 3}"), "variants: 'x' must have options"),
    "a variant of no task": (with_compare("variants: {x: {widht: 8}}"), "did you mean 'width'?"),
    "seeds in a word": (changed("seeds: [0]", "seeds: abc"), "seeds must be a list"),
    "seeds in lists": (changed("seeds: [0]", "seeds: [[0]]"), "seeds must be an integer"),
    "a seed twice": (changed("seeds: [0]", "seeds: [0, 0]"), "seeds must not hold a value twice"),
    "no seeds": (changed("seeds: [0]", "seeds: []"), "seeds must be a list with at least one value"),
    "a root without a corpus": (changed("{vocab", "{root: /data, vocab"), "root"),
    "a root that is a number": (changed("{vocab", "{corpus: tokenized, root: 7, vocab"), "root must be the path"),
}


@pytest.mark.parametrize("case", RECIPES)
def test_a_recipe(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, words = RECIPES[case]
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    assert main(["train", str(path), "--output", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(path) in error
    assert words in error
    assert os.listdir(tmp_path) == ["mine.yaml"]


def check_one_line(error: str, *words: str) -> None:
    assert error.count("\n") == 1, error
    assert "Traceback" not in error
    assert all(word in error for word in words), error


def make_place(path: Path, kind: str) -> None:
    """Something at ``path`` that is no file of text."""
    if kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a link to nowhere":
        path.symlink_to(path.parent / "nowhere")
    elif kind == "a link to itself":
        path.symlink_to(path)


PLACES = {
    "a folder": "it is a folder",
    "a pipe": "it is a pipe",
    "a link to nowhere": "No such file",
    "a link to itself": "symbolic links",
    "nothing": "No such file",
}


@pytest.mark.parametrize("kind", PLACES)
def test_a_recipe_that_is_no_file(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    make_place(path, kind)
    assert main(["train", str(path)]) == 2
    check_one_line(capsys.readouterr().err, str(path), PLACES[kind])


# name of the case: arguments, with {} for the folder of the test, and what the message says
COMMANDS: dict[str, tuple[list[str], str]] = {
    "a NUL in a name": (["train", "{}/a\0b.yaml"], "NUL"),
    "a name of 300 letters": (["train", "{}/" + "a" * 300 + ".yaml"], "name too long"),
    "no steps": (["train", "digits", "--steps", "0"], "steps must be at least 1; got 0"),
    "10^12 steps": (["train", "digits", "--steps", "1000000000000"], "steps must be at most"),
    "a rate that is no number": (["train", "digits", "--learning-rate", "nan"], "learning_rate must be"),
    "an infinite rate": (["train", "digits", "--learning-rate", "inf"], "learning_rate must be"),
    "a huge rate": (["train", "digits", "--learning-rate", "1e30"], "learning_rate must be"),
    "a negative seed": (["train", "digits", "--seed", "-1"], "seed must be at least 0"),
    "a seed twice": (["compare", "digits", "--seeds", "1", "1"], "seeds must"),
    "no seed": (["compare", "digits", "--seeds"], "seeds must"),
    "a rate twice": (["compare", "digits", "--learning-rates", "1e-3", "1e-3"], "learning_rates must"),
    "rates that are no numbers": (["compare", "digits", "--learning-rates", "nan", "inf"], "learning_rates must"),
    "a huge rate in the grid": (["compare", "digits", "--learning-rates", "1e30"], "learning_rates must"),
    "an arm twice": (["compare", "digits", "--arms", "plain", "plain"], "arms must be different"),
    "a task option twice": (["train", "docs/bert", "--task-options", "width=8", "width=9"], "'width' is given twice"),
    "a task option of two lines": (["train", "docs/bert", "--task-options", "width=8\nx: 1"], "must be one line"),
    "a task option without a value": (["train", "docs/bert", "--task-options", "width"], "must be NAME=VALUE"),
    "a task option that is no YAML": (["train", "docs/bert", "--task-options", "width=["], "is not valid YAML"),
    "a root that is ignored": (["train", "docs/bert", "--task-options", "root={}"], "would have no effect"),
    "a cache that is ignored": (["train", "docs/gpt", "--task-options", "cache={}"], "would have no effect"),
    "a size of 10^9": (["train", "docs/bert", "--task-options", "width=1000000000"], "width must be at most"),
    "a million layers": (["train", "docs/gpt", "--task-options", "n_layer=1000000"], "n_layer must be at most"),
    "a model beyond the memory": (["train", "docs/bert", "--task-options", "width=1200000", "layers=1"], "memory"),
    "a context beyond the corpus": (["train", "docs/gpt", "--task-options", "context=9000000"], "python-reference"),
    "a root of a number": (["train", "glue/cola", "--task-options", "root=7"], "root must be the path"),
    "no jobs": (["data", "listops", "--output", "{}/out", "--jobs", "0"], "jobs must be at least 1"),
    "a million jobs": (["data", "listops", "--output", "{}/out", "--jobs", "1000000"], "jobs must be at most"),
    "10^12 expressions": (
        ["data", "listops", "--output", "{}/out", "--count", "1000000000000"],
        "count must be at most",
    ),
    "a million jobs of a sweep": (["sweep", "timm", "--jobs", "1000000"], "jobs must be at most"),
    "a sweep of what nobody knows": (["sweep", "tim"], "tim"),
    "a folder that is there": (["data", "listops", "--output", "{}"], "exists already"),
    "an output inside a file": (["support", "--output", "{}/file/x"], "is a file"),
    "an output in no folder": (["support", "--output", "{}/no/x"], "is missing"),
    "an output that is a folder": (["inspect", "test_vit", "--output", "{}"], "it is a folder"),
    "an output without a name": (["inspect", "test_vit", "--output", ""], "it is a folder"),
    "a page in no folder": (["inspect", "test_vit", "--output", "{}/no/x.html"], "is missing"),
    "a benchmark of no time": (["bench", "--output", "{}/b", "--seconds", "nan"], "seconds must be"),
    "a benchmark of nothing": (["bench", "--output", "{}/b", "--shapes"], "--shapes must name at least one"),
    "a benchmark into a file": (["bench", "--output", "{}/file"], "file could not be written"),
    "a task of GLUE twice": (["glue", "{}", "--root", "{}", "--tasks", "cola", "cola"], "tasks must be"),
    "no task of GLUE": (["glue", "{}", "--root", "{}", "--tasks"], "tasks must be"),
    "10^9 trials": (["glue", "{}", "--root", "{}", "--trials", "1000000000"], "trials must be at most"),
    "a README without its markers": (["support", "--readme", "{}/file"], "/file: the text must hold the lines"),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_a_command_line(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, words = COMMANDS[case]
    (tmp_path / "file").write_text("text")
    monkeypatch.chdir(tmp_path)
    assert main([argument.replace("{}", str(tmp_path)) for argument in arguments]) == 2
    check_one_line(capsys.readouterr().err, words)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "file"]


def read_cola(folder: Path) -> object:
    return read_glue(folder, "cola", "train")


def read_sst2(folder: Path) -> object:
    return read_glue(folder, "sst2", "train")


def read_stories(folder: Path) -> object:
    return list(find_stories(folder, "train").read())


def read_reviews(folder: Path) -> object:
    return read_imdb(folder, "train", length=100)


def read_tokens(folder: Path) -> object:
    return open_token_file(folder / "t.bin")


def read_tokenizer_file(folder: Path) -> object:
    return load_byte_bpe(str(folder / "tokenizer.json"))


HEADER = {"read": 1, "documents": 1, "empty": 0, "bytes": 2, "tokens": 2, "sha256": "0" * 64}
SHA_OF_ABCD = "88d4266fd4e6338d13b845fcf289579d209c897823b9217da3e161936f031589"
BERT = {"model_type": "crammed-bert", "sizes": {"width": 8}, "preconditioned_attention": None}


def token_header(**changes: object) -> bytes:
    return json.dumps({**HEADER, "making": {"dtype": "uint16"}, **changes}).encode()


def bert_config(**changes: object) -> bytes:
    return json.dumps({**BERT, **changes}).encode()


# name of the case: what reads, the file, its content (None: a pipe), and what the message says besides its name
TEXTS: dict[str, tuple[Callable[[Path], object], str, bytes | None, str]] = {
    "CoLA that is a pipe": (read_cola, "CoLA/train.tsv", None, "it is a pipe"),
    "CoLA in Latin 1": (read_cola, "CoLA/train.tsv", b"a\t1\t\tcaf\xe9\n", "line 1: not UTF-8"),
    "CoLA with a column less": (read_cola, "CoLA/train.tsv", b"a\t1\t\tb\na\t1\n", "line 2: column 4 is missing"),
    "CoLA with a label 2": (
        read_cola,
        "CoLA/train.tsv",
        b"a\t2\t\tb\n",
        "line 1: the label must be one of 0, 1; got '2'",
    ),
    "CoLA without a line": (read_cola, "CoLA/train.tsv", b"", "holds no examples"),
    "SST-2 with a column twice": (read_sst2, "SST-2/train.tsv", b"sentence\tsentence\tlabel\na\tb\t1\n", "twice"),
    "SST-2 without a column": (read_sst2, "SST-2/train.tsv", b"sentence\tlabels\na\t1\n", "column 'label' is missing"),
    "stories that are a pipe": (read_stories, "TinyStories-train.txt", None, "it is a pipe"),
    "stories in UTF-16": (read_stories, "TinyStories-train.txt", "Once".encode("utf-16"), "line 1"),
    "stories with NUL": (read_stories, "TinyStories-train.txt", b"Once\n\0\0\0\n", "line 2 holds NUL"),
    "no stories": (read_stories, "TinyStories-train.txt", b"", "is empty"),
    "stories that are no parquet": (read_stories, "data/train-0.parquet", b"PAR1", "train-0.parquet cannot be read"),
    "stories in a pipe of parquet": (read_stories, "data/train-0.parquet", None, "train-0.parquet cannot be read"),
    "a review that is a pipe": (read_reviews, "train/neg/0_1.txt", None, "it is a pipe"),
    "a review in Latin 1": (read_reviews, "train/neg/0_1.txt", b"a\nf\xe9\n", "line 2 is not UTF-8"),
    "a review of NUL": (read_reviews, "train/neg/0_1.txt", b"\0" * 9, "NUL"),
    "an empty review": (read_reviews, "train/neg/0_1.txt", b"", "is empty"),
    "pairs that are a pipe": (
        lambda f: read_aan(f, "train", length=9),
        "new_aan_pairs.train.tsv",
        None,
        "it is a pipe",
    ),
    "pairs without a text": (
        lambda f: read_aan(f, "train", length=9),
        "new_aan_pairs.train.tsv",
        b"1.0\ta\tb\tc\t\n",
        "line 1",
    ),
    "expressions in a pipe": (lambda f: read_listops(f, "val"), "basic_val.tsv", None, "it is a pipe"),
    "expressions of words": (
        lambda f: read_listops(f, "val"),
        "basic_val.tsv",
        b"Source\tTarget\r\nword\t1\r\n",
        "line 2",
    ),
    "tokens cut short": (read_tokens, "t.json", token_header()[:40], "is not valid JSON"),
    "tokens of a list": (read_tokens, "t.json", b"[1]", "must hold a JSON object"),
    "tokens of floats": (read_tokens, "t.json", token_header(making={"dtype": "float32"}), "does not describe"),
    "tokens counted in words": (read_tokens, "t.json", token_header(tokens="two"), "does not describe"),
    "tokens that changed": (read_tokens, "t.json", token_header(), "t.bin has changed"),
    "fewer tokens than said": (read_tokens, "t.json", token_header(tokens=9, sha256=SHA_OF_ABCD), "must hold 9 tokens"),
    "tokens with a key twice": (read_tokens, "t.json", b'{"read": 1, "read": 2}', "'read' stands twice"),
    "tokens nested too deeply": (read_tokens, "t.json", b'{"a":' * 100_000, "nested too deeply"),
    "a tokenizer cut short": (read_tokenizer_file, "tokenizer.json", b'{"model', "is not a tokenizer.json"),
    "a tokenizer in Latin 1": (read_tokenizer_file, "tokenizer.json", b'{"\xe9": 1}', "is not UTF-8"),
    "a tokenizer that is a pipe": (read_tokenizer_file, "tokenizer.json", None, "it is a pipe"),
    "a tokenizer of a list": (read_tokenizer_file, "tokenizer.json", b"[]", "is not a tokenizer.json"),
    "a BERT cut short": (load_crammed_bert, "config.json", bert_config()[:30], "is not valid JSON"),
    "a BERT of another kind": (load_crammed_bert, "config.json", bert_config(model_type="bert"), "crammed BERT"),
    "a BERT without sizes": (load_crammed_bert, "config.json", bert_config(sizes=3), "must hold sizes"),
    "a BERT of words": (
        load_crammed_bert,
        "config.json",
        bert_config(sizes={"width": "wide"}),
        "width must be an integer",
    ),
    "a BERT with an unknown option": (
        load_crammed_bert,
        "config.json",
        bert_config(preconditioned_attention={"a": 1}),
        "a",
    ),
    "a BERT in a pipe": (load_crammed_bert, "config.json", None, "it is a pipe"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_a_text(case: str, tmp_path: Path) -> None:
    read, name, content, words = TEXTS[case]
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "t.bin").write_bytes(b"abcd")
    if content is None:
        os.mkfifo(path)
    else:
        path.write_bytes(content)
    with pytest.raises((ValueError, TypeError, OSError)) as raised:
        read(tmp_path)
    assert str(path) in str(raised.value) or "t.bin" in words
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


# name of the case: columns of a parquet file, and what the message says
COLUMNS: dict[str, tuple[dict[str, list[Any]], str]] = {
    "sentences of integers": ({"sentence": [1], "label": [1]}, "row 1: the column 'sentence' must hold text; got 1"),
    "sentences of floats": ({"sentence": [0.5], "label": [1]}, "must hold text; got 0.5"),
    "sentences of lists": ({"sentence": [["a"]], "label": [1]}, "must hold text; got ['a']"),
    "sentences of bytes": ({"sentence": [b"a"], "label": [1]}, "must hold text; got b'a'"),
    "sentences of truth values": ({"sentence": [True], "label": [1]}, "must hold text; got True"),
    "a sentence that is missing": (
        {"sentence": ["a", None], "label": [1, 1]},
        "row 2: the column 'sentence' is missing",
    ),
    "no sentences": ({"sentence": [], "label": []}, "holds no rows"),
    "another column": ({"sentences": ["a"], "label": [1]}, "the column 'sentence' is missing"),
    "a label that is missing": ({"sentence": ["a"], "label": [None]}, "the column 'label' is missing"),
    "a label of text": ({"sentence": ["a"], "label": ["1"]}, "the label must be from 0 to 1; got '1'"),
    "half a label": ({"sentence": ["a"], "label": [0.5]}, "the label must be from 0 to 1; got 0.5"),
    "a label that is no number": (
        {"sentence": ["a"], "label": [float("nan")]},
        "the label must be from 0 to 1; got nan",
    ),
    "a label that is true": ({"sentence": ["a"], "label": [True]}, "the label must be from 0 to 1; got True"),
    "a label of a test split": ({"sentence": ["a"], "label": [-1]}, "the label must be from 0 to 1; got -1"),
    "labels in lists": ({"sentence": ["a"], "label": [[1]]}, "the label must be from 0 to 1; got [1]"),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_a_parquet_file_of_glue(case: str, tmp_path: Path) -> None:
    columns, words = COLUMNS[case]
    path = write_parquet(tmp_path / "cola" / "train-0.parquet", columns)
    with pytest.raises(ValueError, match="train-0") as raised:
        read_cola(tmp_path)
    assert str(path) in str(raised.value)
    assert words in str(raised.value)


def write_parquet(path: Path, columns: dict[str, list[Any]]) -> Path:
    arrow = pytest.importorskip("pyarrow")
    path.parent.mkdir(parents=True, exist_ok=True)
    pytest.importorskip("pyarrow.parquet").write_table(arrow.table(columns), path)
    return path


ROWS: dict[str, tuple[list[Any], str]] = {
    "floats": ([1.5, 2.0], "whole numbers from 0 to 9; got 1.5"),
    "words": (["a", "b"], "whole numbers from 0 to 9; got 'a'"),
    "a token beyond the vocabulary": ([1, 10], "whole numbers from 0 to 9; got 10"),
    "a negative token": ([-1, 2], "whole numbers from 0 to 9; got -1"),
    "another length": ([1], "must hold 2 tokens; got 1"),
}


@pytest.mark.parametrize("case", ROWS)
def test_rows_of_tokens(case: str, tmp_path: Path) -> None:
    tokens, words = ROWS[case]
    write_parquet(tmp_path / "a.parquet", {"input_ids": [tokens] * 1001})
    rows = TokenizedRows(open_tokenized(tmp_path), "train", length=2, vocab_size=10, name=str(tmp_path))
    with pytest.raises(ValueError) as raised:
        rows[0]
    assert str(tmp_path) in str(raised.value)
    assert words in str(raised.value)


@pytest.fixture(scope="module")
def weights() -> dict[str, Any]:
    """Those of a small model whose attention is preconditioned."""
    from preconditioned_attention import precondition_

    model = pytest.importorskip("timm").create_model("test_vit", pretrained=False)
    precondition_(model)
    return dict(model.state_dict())


WEIGHT = "blocks.0.attn.qkv.weight"
MARK = "blocks.0.attn.preconditioner.requires_preconditioned_attention"


def with_entry(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(weight: torch.Tensor) -> torch.Tensor:
        weight = weight.double()
        weight[0, 0] = value
        return weight

    return change


# name of the case: which tensor, what becomes of it, and what the message says
TENSORS: dict[str, tuple[str, Callable[[torch.Tensor], object], str]] = {
    "NaN": (WEIGHT, with_entry(float("nan")), "1 entries of 12288 that are NaN or infinite"),
    "an infinity": (WEIGHT, with_entry(-float("inf")), "NaN or infinite"),
    "beyond float32": (WEIGHT, with_entry(1e300), "beyond float32, the largest 1e+300"),
    "integers": (WEIGHT, lambda x: x.long(), "holds integers (int64)"),
    "bytes": (WEIGHT, lambda x: x.to(torch.int8), "holds integers (int8)"),
    "truth values": (WEIGHT, lambda x: x > 0, "holds truth values (bool)"),
    "complex numbers": (WEIGHT, lambda x: x + 1j, "holds complex numbers (complex64)"),
    "8 bits": (WEIGHT, lambda x: x.to(torch.float8_e4m3fn), "without their scale"),
    "a meta tensor": (WEIGHT, lambda x: x.to("meta"), "on the meta device"),
    "an empty tensor": (WEIGHT, lambda x: x[:0].clone(), "(0, 64) instead of (192, 64)"),
    "a scalar": (WEIGHT, lambda x: x.sum(), "() instead of (192, 64)"),
    "no tensor": (WEIGHT, lambda x: None, "1 missing"),
    "a scalar mark": (MARK, lambda x: torch.tensor(1.0), "has shape ()"),
    "a negative mark": (MARK, lambda x: torch.tensor([-1.0, 0, 0]), "of another version"),
    "a mark of a later version": (MARK, lambda x: torch.ones(9, 2, 2), "of another version"),
    "a mark of NaN": (MARK, lambda x: torch.full((3,), float("nan")), "of another version"),
    "an empty mark": (MARK, lambda x: torch.ones(0), "has shape (0,)"),
    "a mark that is a number": (MARK, lambda x: 3.0, "a mark is a tensor"),
    "a mark that is None": (MARK, lambda x: None, "a mark is a tensor"),
    "a mark that is text": (MARK, lambda x: "full", "a mark is a tensor"),
    "a complex mark": (MARK, lambda x: torch.tensor([1 + 0j, 0, 0]), MARK),
}


@pytest.mark.parametrize("case", TENSORS)
def test_a_checkpoint(case: str, weights: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, change, words = TENSORS[case]
    path = tmp_path / "weights.pt"
    torch.save({**weights, key: change(weights[key])}, path)
    check_inspection(path, words, capsys)


CHECKPOINTS: dict[str, tuple[str, bytes, str]] = {
    "nothing": ("weights.pt", b"", "no file of torch.save"),
    "garbage": ("weights.pt", b"garbage", "no file of torch.save"),
    "nothing in safetensors": ("weights.safetensors", b"", "cannot be read as weights"),
    "garbage in safetensors": ("weights.safetensors", b"garbage" * 9, "cannot be read as weights"),
    "safetensors of a terabyte": ("weights.safetensors", (10**12).to_bytes(8, "little") + b"{}", "cannot be read"),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_a_checkpoint_that_is_none(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, content, words = CHECKPOINTS[case]
    path = tmp_path / name
    path.write_bytes(content)
    check_inspection(path, words, capsys)


def check_inspection(path: Path, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    page = path.with_name("page.html")
    assert main(["inspect", "test_vit", "--checkpoint", str(path), "--output", str(page)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]  # torch may warn before
    assert str(path) in error
    assert words in error
    assert not page.exists()


GPT2 = {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 16, "vocab_size": 300, "n_positions": 32}
# name of the case: the config.json of a folder, and what the message says besides its name
CONFIGS: dict[str, tuple[object, str]] = {
    "cut short": (b'{"model_type": "gp', "is not valid JSON"),
    "a list": ([1], "must hold a JSON object"),
    "empty": (b"", "is not valid JSON"),
    "Latin 1": (b'{"model_type": "\xe9"}', "is not UTF-8"),
    "a key twice": (b'{"model_type": "gpt2", "n_layer": 1, "n_layer": 2}', "'n_layer' stands twice"),
    "too deep": (b'{"a":' * 100_000, "nested too deeply"),
    "without a type": ({"n_layer": 1}, "describes no model"),
    "of an unknown type": ({"model_type": "nope"}, "describes no model"),
    "of layers in words": ({**GPT2, "n_layer": "one"}, "describes no model"),
    "of a million layers": ({**GPT2, "n_layer": 1_000_000}, "num_hidden_layers must be at most"),
    "of negative width": ({**GPT2, "n_embd": -16}, "describes no model"),
    "of no heads": ({**GPT2, "n_head": 0}, "describes no model"),
    "of heads that do not fit": ({**GPT2, "n_head": 3}, "describes no model"),
    "of a width of 10^12": ({**GPT2, "n_embd": 10**12}, "describes no model"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_folder_of_a_model(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, words = CONFIGS[case]
    path = tmp_path / "config.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    assert main(["inspect", str(tmp_path), "--output", str(tmp_path / "page.html")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert str(path) in error
    assert words in error
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["a folder", "a pipe"])
def test_a_file_to_write_that_is_none(kind: str, tmp_path: Path) -> None:
    """A renamed file would take the place of a pipe or a device."""
    path = tmp_path / "page.html"
    make_place(path, kind)
    with pytest.raises(OSError, match="could not be written: it is a"):
        write_atomically(path, "text")
    assert not path.is_file()


def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_atomically(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "text"


def test_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"page\.html could not be written: No space left on device; free some space"):
        write_atomically(tmp_path / "page.html", "text")
    assert list(tmp_path.iterdir()) == []


def test_json_without_its_end(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"validation": {"acc')
    with pytest.raises(ValueError, match=r"result\.json is not valid JSON"):
        read_json(tmp_path / "result.json")


# name of the case: what becomes of a file of a finished run, its name, and what the message says
RUNS: dict[str, tuple[str, bytes, str]] = {
    "a configuration in UTF-16": ("config.yaml", "task: a".encode("utf-16"), "is not UTF-8"),
    "an empty configuration": ("config.yaml", b"", "must hold a mapping"),
    "a configuration with a key twice": ("config.yaml", b"seed: 1\nseed: 2\n", "'seed' stands there a second time"),
    "a configuration of a task that is not": (
        "config.yaml",
        b"task: a\nsteps: 1\nbatch_size: 1\nlearning_rate: 1\n",
        "'a'",
    ),
    "weights of nothing": ("model.safetensors", b"", "does not hold the weights"),
    "weights of garbage": ("model.safetensors", b"garbage" * 9, "does not hold the weights"),
}


@pytest.mark.parametrize("case", RUNS)
def test_the_folder_of_a_run(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, content, words = RUNS[case]
    run = tmp_path / "run"
    run.mkdir()
    config = TrainConfig.from_dict({"task": "masked-lm", "steps": 1, "batch_size": 1, "learning_rate": 1e-3})
    options = {"vocab_size": 300, "width": 16, "layers": 1, "num_heads": 2, "feed_forward": 16, "context": 16}
    (run / "config.yaml").write_text(replace(config, task_options=options).to_yaml())
    (run / "model.safetensors").write_bytes(b"")
    (run / name).write_bytes(content)
    assert main(["export", str(run), "--output", str(tmp_path / "out")]) == 2
    check_one_line(capsys.readouterr().err, str(run / name), words)
    assert os.listdir(tmp_path) == ["run"]


RECORDS: dict[str, tuple[bytes | None, str]] = {
    "empty": (b"", "is not a file of the condition monitor"),
    "Latin 1": (b"caf\xe9\n", "is not UTF-8"),
    "a field without end": (b'"' + b"a" * 200_000 + b'"\n', "is not a file of the condition monitor"),
    "another table": (b"a,b\n1,2\n", "is not a file of the condition monitor"),
    "a pipe": (None, "it is a pipe"),
}


@pytest.mark.parametrize("case", RECORDS)
def test_records_of_the_monitor(case: str, tmp_path: Path) -> None:
    content, words = RECORDS[case]
    path = tmp_path / "conditioning.csv"
    if content is None:
        os.mkfifo(path)
    else:
        path.write_bytes(content)
    with pytest.raises((ValueError, OSError)) as raised:
        read_records(path)
    assert str(path) in str(raised.value)
    assert words in str(raised.value)
