import logging
from pathlib import Path

import pytest

from preconditioned_attention.lab.data.glue import GLUE, GlueExample, read_glue
from tests.helpers.glue_tree import label_of, texts, write_hub, write_release


def expected(task: str, first: int, count: int) -> list[GlueExample]:
    single = GLUE[task].columns[1] is None
    return [
        GlueExample(texts(number)[0], "" if single else texts(number)[1], label_of(task, number))
        for number in range(first, first + count)
    ]


def test_eight_tasks_in_the_releases_layout(tmp_path: Path) -> None:
    write_release(tmp_path)
    assert len(GLUE) == 8
    for task, own in GLUE.items():
        assert read_glue(tmp_path, task, "train") == expected(task, 0, 40)
        for place, split in enumerate(own.splits[1:], start=1):
            assert read_glue(tmp_path, task, split) == expected(task, 1000 * place, 12)


@pytest.mark.parametrize("task", ["cola", "stsb", "mnli", "qnli"])
def test_the_hubs_layout_holds_the_same(tmp_path: Path, task: str) -> None:
    pytest.importorskip("datasets")
    write_hub(tmp_path, task)
    assert read_glue(tmp_path, task, "train") == expected(task, 0, 40)
    for place, split in enumerate(GLUE[task].splits[1:], start=1):
        assert read_glue(tmp_path, task, split) == expected(task, 1000 * place, 12)


def change(path: Path, old: str, new: str) -> None:
    content = path.read_bytes()
    assert old.encode() in content
    path.write_bytes(content.replace(old.encode(), new.encode("latin-1"), 1))


@pytest.mark.parametrize(
    ("task", "old", "new", "message"),
    [
        ("rte", "sentence2\tlabel", "sentence2", r"RTE/train\.tsv, line 1: column 'label' is missing; got index, "),
        (
            "rte",
            "\tnot_entailment\n",
            "\tneutral\n",
            r"line 3: the label must be one of entailment, not_ent.*'neutral'",
        ),
        ("rte", "\tnot_entailment\n", "\n", r"line 3: column 4 is missing; the line has 3 fields"),
        ("cola", "gj04\t1", "gj04\t2", r"CoLA/train\.tsv, line 2: the label must be one of 0, 1; got '2'"),
        ("cola", "gj04\t1\t", "gj04\t", r"CoLA/train\.tsv, line 2: column 4 is missing"),
        ("stsb", "\t0.500", "\t5.100", r"line 3: the score must be a number from 0 to 5; got '5\.100'"),
        ("stsb", "\t0.500", "\thalf", r"line 3: the score must be a number from 0 to 5; got 'half'"),
        ("sst2", "cat", "\xff", r"SST-2/train\.tsv, line 2: not UTF-8"),
    ],
)
def test_rows_that_cannot_be(tmp_path: Path, task: str, old: str, new: str, message: str) -> None:
    write_release(tmp_path)
    change(tmp_path / GLUE[task].folder / "train.tsv", old, new)
    with pytest.raises(ValueError, match=message):
        read_glue(tmp_path, task, "train")


def test_broken_rows_of_qqp_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_release(tmp_path)
    with (tmp_path / "QQP" / "train.tsv").open("a") as file:
        file.write("broken\t1\n")
    with caplog.at_level(logging.WARNING):
        assert read_glue(tmp_path, "qqp", "train") == expected("qqp", 0, 40)
    assert "QQP/train.tsv: 1 rows with missing columns are left out" in caplog.text


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"'dev' of cola; expected CoLA/dev\.tsv or cola/validation-\*\.parquet"
    ):
        read_glue(tmp_path, "cola", "dev")
    with pytest.raises(ValueError, match=r"unknown task of GLUE 'wnli'"):
        read_glue(tmp_path, "wnli", "train")
    (tmp_path / "RTE").mkdir()
    (tmp_path / "RTE" / "train.tsv").write_text("index\tsentence1\tsentence2\tlabel\n")
    with pytest.raises(ValueError, match="holds no examples"):
        read_glue(tmp_path, "rte", "train")


def test_labels_of_the_hub_out_of_range(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    (tmp_path / "cola").mkdir()
    rows = datasets.Dataset.from_dict({"sentence": ["a", "b"], "label": [1, -1]})
    rows.to_parquet(str(tmp_path / "cola" / "train-00000-of-00001.parquet"))
    with pytest.raises(ValueError, match=r"row 2: the label must be from 0 to 1; got -1"):
        read_glue(tmp_path, "cola", "train")
