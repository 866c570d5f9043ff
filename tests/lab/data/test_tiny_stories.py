from pathlib import Path

import pytest

from preconditioned_attention.lab.data.tiny_stories import find_stories, read_separated

STORIES = ["Once upon a time\nthere was a cat.", "A dog — naïve — ran.", "The end came."]
RAW = "\n" + STORIES[0] + "\n<|endoftext|>\n" + STORIES[1] + "\n<|endoftext|>\n\n<|endoftext|>\n" + STORIES[2] + "\n"


def make(folder: Path, form: str, stories: dict[str, list[str]]) -> None:
    if form in ("V1", "V2"):
        prefix = {"V1": "TinyStories", "V2": "TinyStoriesV2-GPT4"}[form]
        for split, name in (("train", "train"), ("validation", "valid")):
            text = "".join(f"{story}\n<|endoftext|>\n" for story in stories[split])
            (folder / f"{prefix}-{name}.txt").write_text(text, encoding="utf-8")
        return
    datasets = pytest.importorskip("datasets")
    parts = {split: datasets.Dataset.from_dict({"text": texts}) for split, texts in stories.items()}
    if form == "saved":
        datasets.DatasetDict(parts).save_to_disk(str(folder))
        return
    (folder / "data").mkdir()
    for split, part in parts.items():
        for number in range(2):
            part.shard(2, number).to_parquet(
                str(folder / "data" / f"{split}-0000{number}-of-00002-0123456789abcdef.parquet")
            )


@pytest.mark.parametrize("form", ["V1", "V2", "parquet", "saved"])
def test_every_form_of_the_release(tmp_path: Path, form: str) -> None:
    make(tmp_path, form, {"train": STORIES, "validation": STORIES[::-1]})
    train, validation = find_stories(tmp_path, "train"), find_stories(tmp_path, "validation")
    assert list(train.read()) == list(train.read()) == STORIES
    assert list(validation.read()) == STORIES[::-1]
    assert train.version == ("V2" if form == "V2" else "V1")
    assert train.files
    assert all(size > 0 for size in train.files.values())


def test_text_between_separators(tmp_path: Path) -> None:
    path = tmp_path / "stories.txt"
    path.write_text(RAW, encoding="utf-8")
    assert list(read_separated(path)) == [STORIES[0], STORIES[1], "", STORIES[2]]
    path.write_bytes(RAW.encode().replace(b"\n", b"\r\n"))
    assert list(read_separated(path)) == [STORIES[0].replace("\n", "\r\n"), STORIES[1], "", STORIES[2]]


def test_what_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "stories.txt"
    path.write_bytes(b"One.\n<|endoftext|>\nTwo \xff.\n")
    with pytest.raises(ValueError, match=r"stories\.txt, line 3: byte 5 of the line, 0xff, is not UTF-8"):
        list(read_separated(path))
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"stories\.txt is empty"):
        list(read_separated(path))


def test_a_folder_without_or_with_two(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no train split of TinyStories; expected TinyStories-train\.txt, "):
        find_stories(tmp_path, "train")
    make(tmp_path, "V1", {"train": STORIES, "validation": STORIES})
    make(tmp_path, "V2", {"train": STORIES, "validation": STORIES})
    with pytest.raises(ValueError, match=r"more than once, V1 \(text\) and V2 \(text\)"):
        find_stories(tmp_path, "validation")


def test_a_missing_column(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict({"story": STORIES}).to_parquet(str(tmp_path / "data" / "train-00000-of-00001.parquet"))
    with pytest.raises(ValueError, match=r"train-00000-of-00001\.parquet, row 1: the column 'text' .*columns: story"):
        list(find_stories(tmp_path, "train").read())
