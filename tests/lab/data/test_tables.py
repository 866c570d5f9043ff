from pathlib import Path

import pytest

from preconditioned_attention.lab.data.tables import read_table


def write(folder: Path, content: bytes) -> Path:
    path = folder / "table.tsv"
    path.write_bytes(content)
    return path


def test_lines_and_their_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, b'a\tb\n"x\ty\r\n\xc3\xa9\t\n')
    assert list(read_table(path, ["a", "b"], header=True)) == [(2, [b'"x', b"y"]), (3, ["é".encode(), b""])]
    assert [number for number, _ in read_table(path, ["a", "b"], header=False)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"table\.tsv is empty"),
        (b"a\tb\n1\t2\n3\n", r"table\.tsv, line 3: 2 columns with tabs between are expected \(a, b\); got 1"),
        (b"a\tb\n1\t2\t3\n", r"line 2: 2 columns .*got 3"),
        (b"a\tb\n1\t\xff\n", r"table\.tsv, line 2 is not UTF-8 \(byte 2: invalid start byte\)"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(read_table(write(tmp_path, content), ["a", "b"], header=True))
