from pathlib import Path

import pytest

from preconditioned_attention.lab.data.imdb import read_imdb
from tests.helpers.long_range_trees import write_imdb, write_imdb_of_hub


def test_bytes_plus_one_and_labels(tmp_path: Path) -> None:
    data = read_imdb(write_imdb(tmp_path / "aclImdb"), "train", length=4000)
    assert list(data.labels) == [0, 0, 0, 1, 1, 1]
    ids, label = data[4]
    assert (bytes(number - 1 for number in ids.tolist()).decode(), label) == ("train 1 Good – really.", 1)
    short = read_imdb(tmp_path / "aclImdb", "test", length=5)
    assert short[0][0].tolist() == [byte + 1 for byte in b"test "]


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    folder = write_imdb(tmp_path / "aclImdb")
    path = folder / "train" / "neg" / "1_7.txt"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"1_7\.txt is empty; it must hold a review"):
        read_imdb(folder, "train", length=10)
    path.write_bytes(b"one\ntwo \xff\n")
    with pytest.raises(ValueError, match=r"1_7\.txt, line 2 is not UTF-8 \(byte 8: invalid start byte\)"):
        read_imdb(folder, "train", length=10)
    with pytest.raises(FileNotFoundError, match=r"holds no \*\.txt; .* must be the folder aclImdb"):
        read_imdb(tmp_path, "train", length=10)


def test_the_files_of_the_hub(tmp_path: Path) -> None:
    folder = write_imdb_of_hub(tmp_path / "imdb")
    data = read_imdb(folder, "train", length=4000)
    assert list(data.labels) == [1, 0]
    assert bytes(number - 1 for number in data[0][0].tolist()).decode() == "train Good – really."
    assert read_imdb(folder, "test", length=5)[1][0].tolist() == [byte + 1 for byte in b"test "]
    with pytest.raises(ValueError, match=r"unsupervised.*, row 1: the label must be 0 or 1; got -1"):
        read_imdb(folder, "unsupervised", length=10)


def test_an_empty_review_of_the_hub(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": ["good", ""], "label": [1, 0]}).to_parquet(tmp_path / "train-0.parquet")
    with pytest.raises(ValueError, match=r"train-0\.parquet, row 2: the text is empty"):
        read_imdb(tmp_path, "train", length=10)
