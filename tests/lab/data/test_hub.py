from pathlib import Path

import pytest

from preconditioned_attention.lab.data.hub import find_parquet, read_parquet

datasets = pytest.importorskip("datasets")


def write(path: Path, **columns: list[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(columns).to_parquet(path)
    return path


@pytest.mark.parametrize("folder", [".", "data", "plain_text"])
def test_files_of_a_split_are_found_in_order(folder: str, tmp_path: Path) -> None:
    for number in (1, 0):
        write(tmp_path / folder / f"train-{number}.parquet", text=["a"])
    write(tmp_path / folder / "test-0.parquet", text=["a"])
    assert [path.name for path in find_parquet(tmp_path, "train")] == ["train-0.parquet", "train-1.parquet"]
    assert find_parquet(tmp_path, "validation") == []


def test_a_split_in_two_places_is_ambiguous(tmp_path: Path) -> None:
    for folder in (".", "data"):
        write(tmp_path / folder / "train-0.parquet", text=["a"])
    with pytest.raises(ValueError, match=r"holds the train split more than once, in .* and .*data; keep one"):
        find_parquet(tmp_path, "train")


def test_rows_say_where_they_stand(tmp_path: Path) -> None:
    files = [write(tmp_path / f"train-{number}.parquet", text=[f"a{number}", f"b{number}"]) for number in range(2)]
    rows = list(read_parquet(files, ("text",)))
    assert [row["text"] for _, row in rows] == ["a0", "b0", "a1", "b1"]
    assert rows[3][0] == f"{files[1]}, row 2"


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "train-0.parquet", text=["a", None], label=[0, 1])
    with pytest.raises(
        ValueError,
        match=r"train-0\.parquet, row 2: the column 'text' is missing or holds nothing \(columns: text, label\)",
    ):
        list(read_parquet([path], ("text", "label")))
    with pytest.raises(ValueError, match=r"row 1: the column 'score' is missing"):
        list(read_parquet([path], ("score",)))
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(OSError, match=r"train-0\.parquet cannot be read"):
        list(read_parquet([path], ("text",)))


def test_a_file_that_is_damaged_in_its_middle(tmp_path: Path) -> None:
    path = write(tmp_path / "train-0.parquet", text=[f"{number} " * 50 for number in range(200)])
    content = path.read_bytes()
    path.write_bytes(content[:20] + bytes(200) + content[220:])  # what the file says of itself, at its end, is whole
    with pytest.raises(OSError, match=r"train-0\.parquet cannot be read"):
        list(read_parquet([path], ("text",)))


def test_a_file_without_rows(tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string")})
    datasets.Dataset.from_dict({"text": []}, features=features).to_parquet(tmp_path / "train-0.parquet")
    with pytest.raises(ValueError, match=r"train-0\.parquet holds no rows"):
        list(read_parquet([tmp_path / "train-0.parquet"], ("text",)))
