from pathlib import Path

import pytest

from preconditioned_attention.lab.data.tokenized import TokenizedRows, open_tokenized

datasets = pytest.importorskip("datasets")


def rows(count: int) -> object:
    return datasets.Dataset.from_dict({"input_ids": [[number, 7] for number in range(count)]})


@pytest.mark.parametrize("form", ["saved", "parquet", "data"])
def test_every_row_is_in_one_part(tmp_path: Path, form: str) -> None:
    if form == "saved":
        rows(2501).save_to_disk(str(tmp_path))
    else:
        folder = tmp_path / "data" if form == "data" else tmp_path
        folder.mkdir(exist_ok=True)
        rows(2501).to_parquet(str(folder / "train-00000.parquet"))
    opened = open_tokenized(tmp_path)
    parts = {part: TokenizedRows(opened, part, length=2, vocab_size=3000) for part in ("train", "validation", "test")}
    numbers = {part: [int(own[index][0]) for index in range(len(own))] for part, own in parts.items()}
    assert numbers["validation"] == [0, 1000, 2000]
    assert numbers["test"] == [1, 1001, 2001]
    assert numbers["train"] == [number for number in range(2501) if number % 1000 > 1]
    assert parts["train"][0].tolist() == [2, 7]
    with pytest.raises(IndexError):
        parts["test"][3]


def test_what_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no data set"):
        open_tokenized(tmp_path)
    with pytest.raises(ValueError, match="more than 1000 rows; got 1000"):
        TokenizedRows(rows(1000), "train", length=2, vocab_size=3000)
    with pytest.raises(ValueError, match=r"row 2: input_ids must hold 3 tokens; got 2"):
        TokenizedRows(rows(1001), "train", length=3, vocab_size=3000)[0]
    datasets.Dataset.from_dict({"tokens": [[1]]}).to_parquet(str(tmp_path / "a.parquet"))
    with pytest.raises(ValueError, match="must have the column 'input_ids'; got tokens"):
        open_tokenized(tmp_path)
