"""Reader of GLUE's eight tasks: the tab-separated files of its release, or the parquet files of the hub.

Source: A. Wang et al., GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding, ICLR
2019. WNLI is left out, as usual. The labels of the test splits are not public: scores are those of the dev splits.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..._checks import check_known
from ..._files import open_file
from .hub import read_parquet, text_in

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class GlueTask:
    """Columns, classes and metric of a task.

    Attributes:
        folder: in the release.
        columns: of first text, second text and label in the release; positions where there is no header.
        hub_columns: of the texts on the hub, where the label is ``label``, a number.
        classes: names of the labels in the release, in the order of their numbers; empty: a score from 0 to 5.
        metric: the one that goes into the average.
        splits: the names of training, dev and, for MNLI, mismatched dev files in the release.
        skips_short_rows: whether rows with missing columns are left out and counted; in the others they are an error.
    """

    folder: str
    columns: tuple[str | int, str | int | None, str | int]
    hub_columns: tuple[str, str | None]
    classes: tuple[str, ...]
    metric: str
    splits: tuple[str, ...] = ("train", "dev")
    skips_short_rows: bool = False


_BINARY, _ENTAILMENT = ("0", "1"), ("entailment", "not_entailment")
MNLI_CLASSES = ("entailment", "neutral", "contradiction")
HUB_SPLITS = {
    "train": "train",
    "dev": "validation",
    "dev_matched": "validation_matched",
    "dev_mismatched": "validation_mismatched",
}
LARGEST_SCORE = 5.0

GLUE: dict[str, GlueTask] = {
    "cola": GlueTask(
        folder="CoLA", columns=(3, None, 1), hub_columns=("sentence", None), classes=_BINARY, metric="matthews"
    ),
    "sst2": GlueTask(
        folder="SST-2",
        columns=("sentence", None, "label"),
        hub_columns=("sentence", None),
        classes=_BINARY,
        metric="accuracy",
    ),
    "mrpc": GlueTask(
        folder="MRPC",
        columns=("#1 String", "#2 String", "Quality"),
        hub_columns=("sentence1", "sentence2"),
        classes=_BINARY,
        metric="f1",
    ),
    "stsb": GlueTask(
        folder="STS-B",
        columns=("sentence1", "sentence2", "score"),
        hub_columns=("sentence1", "sentence2"),
        classes=(),
        metric="pearson",
    ),
    "qqp": GlueTask(
        folder="QQP",
        columns=("question1", "question2", "is_duplicate"),
        hub_columns=("question1", "question2"),
        classes=_BINARY,
        metric="f1",
        skips_short_rows=True,
    ),
    "mnli": GlueTask(
        folder="MNLI",
        columns=("sentence1", "sentence2", "gold_label"),
        hub_columns=("premise", "hypothesis"),
        classes=MNLI_CLASSES,
        metric="accuracy",
        splits=("train", "dev_matched", "dev_mismatched"),
    ),
    "qnli": GlueTask(
        folder="QNLI",
        columns=("question", "sentence", "label"),
        hub_columns=("question", "sentence"),
        classes=_ENTAILMENT,
        metric="accuracy",
    ),
    "rte": GlueTask(
        folder="RTE",
        columns=("sentence1", "sentence2", "label"),
        hub_columns=("sentence1", "sentence2"),
        classes=_ENTAILMENT,
        metric="accuracy",
    ),
}
"""The tasks by the names that the hub gives them."""


@dataclass(frozen=True)
class GlueExample:
    """A text, a second one or an empty string, and a class's number or a score."""

    first: str
    second: str
    label: float


def read_glue(root: Path, task: str, split: str) -> list[GlueExample]:
    """One split of a task.

    Args:
        root: holds ``CoLA/train.tsv`` and so on, as the release does, or ``cola/train-*.parquet``, as the hub's
            ``nyu-mll/glue`` does.
        task: a name in :data:`GLUE`.
        split: one of the task's ``splits``.

    Raises:
        FileNotFoundError: the folder holds neither. ValueError: a row is invalid; the message names file and line.
    """
    check_known("task of GLUE", [task], GLUE)
    own = GLUE[task]
    check_known(f"split of {task}:", [split], own.splits)
    tsv = root / own.folder / f"{split}.tsv"
    parquet = sorted((root / task).glob(f"{HUB_SPLITS[split]}-*.parquet"))
    if tsv.exists():
        examples = list(_read_tsv(tsv, own))
    elif parquet:
        examples = list(_read_parquet(parquet, own))
    else:
        raise FileNotFoundError(
            f"{root} holds no split {split!r} of {task}; expected {own.folder}/{split}.tsv or "
            f"{task}/{HUB_SPLITS[split]}-*.parquet"
        )
    if not examples:
        raise ValueError(f"{tsv if tsv.exists() else parquet[0]} holds no examples")
    return examples


def _read_tsv(path: Path, task: GlueTask) -> Iterator[GlueExample]:
    """The rows of a file without quoting: a quotation mark is a character like any other."""
    lines = enumerate(_lines(path), start=1)
    first, second, label = _positions(path, task, lines)
    needed = max(first, second if second is not None else 0, label)
    skipped = 0
    for number, line in lines:
        fields = line.split("\t")
        if len(fields) <= needed:
            if not task.skips_short_rows:
                raise ValueError(
                    f"{path}, line {number}: column {needed + 1} is missing; the line has {len(fields)} fields"
                )
            skipped += 1
            continue
        value = _label(fields[label], task, f"{path}, line {number}")
        yield GlueExample(fields[first], "" if second is None else fields[second], value)
    if skipped:
        logger.warning("%s: %d rows with missing columns are left out", path, skipped)


def _lines(path: Path) -> Iterator[str]:
    with open_file(path) as file:
        for number, raw in enumerate(file, start=1):
            try:
                yield raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}, line {number}: not UTF-8 ({error.reason} at byte {error.start + 1})"
                ) from error


def _positions(path: Path, task: GlueTask, lines: Iterator[tuple[int, str]]) -> tuple[int, int | None, int]:
    """The positions of the columns; reads the header, if there is one."""
    first, second, label = task.columns
    if isinstance(first, int) and isinstance(label, int):
        return first, None, label
    _, header = next(lines, (1, ""))
    names = header.split("\t")
    wanted = [str(name) for name in (first, second, label) if name is not None]
    for words, times in (("is missing", 0), ("stands there twice", 2)):
        wrong = [name for name in wanted if min(names.count(name), 2) == times]
        if wrong:
            raise ValueError(f"{path}, line 1: column {', '.join(map(repr, wrong))} {words}; got {', '.join(names)}")
    places = [None if name is None else names.index(str(name)) for name in (first, second, label)]
    return places[0] or 0, places[1], places[2] or 0


def _label(text: str, task: GlueTask, where: str) -> float:
    if task.classes:
        if text not in task.classes:
            raise ValueError(f"{where}: the label must be one of {', '.join(task.classes)}; got {text!r}")
        return float(task.classes.index(text))
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not 0 <= score <= LARGEST_SCORE:
        raise ValueError(f"{where}: the score must be a number from 0 to {LARGEST_SCORE:g}; got {text!r}")
    return score


def _read_parquet(paths: list[Path], task: GlueTask) -> Iterator[GlueExample]:
    first, second = task.hub_columns
    columns = [name for name in (first, second, "label") if name is not None]
    for where, row in read_parquet(paths, columns):
        texts = [text_in(row, name, where) for name in (first, second) if name is not None]
        yield GlueExample(texts[0], "" if second is None else texts[1], _number(row["label"], task, where))


def _number(label: Any, task: GlueTask, where: str) -> float:
    highest = len(task.classes) - 1 if task.classes else LARGEST_SCORE
    is_number = isinstance(label, int | float) and not isinstance(label, bool)
    if not is_number or not 0 <= label <= highest or (task.classes and label != int(label)):
        raise ValueError(f"{where}: the label must be from 0 to {highest:g}; got {label!r}")
    return float(label)
