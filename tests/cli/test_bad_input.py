"""Bad input of texts, configurations and command lines: exit code 2, one line that names the file, no half files."""

import os
from pathlib import Path

import pytest

from preconditioned_attention.cli import main

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
    "deep lists": (b"train: " + b"[" * 3000 + b"]" * 3000, "levels"),
    "deep mappings": (b"train: " + b"{a: " * 3000 + b"1" + b"}" * 3000, "levels"),
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
