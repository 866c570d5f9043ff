from pathlib import Path

import pytest

from preconditioned_attention.lab.data.aan import read_aan
from tests.helpers.long_range_trees import write_aan


def test_pairs(tmp_path: Path) -> None:
    pairs = read_aan(write_aan(tmp_path / "tsv_data"), "train", length=4000)
    assert (len(pairs), pairs.labels) == (6, [0, 1, 0, 1, 0, 1])
    first, second, label = pairs[3]
    assert first.tolist() == [byte + 1 for byte in b'A "text train']
    assert second.tolist() == [byte + 1 for byte in b"Another, longer 3"]
    assert label == 1
    assert read_aan(tmp_path / "tsv_data", "eval", length=3)[0][1].tolist() == [byte + 1 for byte in b"Ano"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"1.0\tP\tC\tonly one text\n", r"pairs\.test\.tsv, line 2: 5 columns with tabs between .*; got 4"),
        (b"2.0\tP\tC\ta\tb\n", r"pairs\.test\.tsv, line 2: the label must be 0\.0 or 1\.0; got b'2\.0'"),
        (b"1.0\tP\tC\ta\t\xff\n", r"pairs\.test\.tsv, line 2 is not UTF-8"),
        (b"1.0\tP\tC\ta\t\n", r"pairs\.test\.tsv, line 2: a text is empty"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = write_aan(tmp_path / "tsv_data") / "new_aan_pairs.test.tsv"
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0] + line)
    with pytest.raises(ValueError, match=message):
        read_aan(path.parent, "test", length=10)


def test_an_empty_file(tmp_path: Path) -> None:
    path = write_aan(tmp_path / "tsv_data") / "new_aan_pairs.eval.tsv"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"eval\.tsv is empty"):
        read_aan(path.parent, "eval", length=10)
