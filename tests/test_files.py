from pathlib import Path

import pytest

from preconditioned_attention._files import publish, write_atomically


def test_replaces_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for text in ("old", "new\n"):
        write_atomically(path, text)
        assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_old_content_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")

    def fail(*_: object, **__: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_publishes_folders(tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    (temporary / "inner").mkdir(parents=True)
    (temporary / "inner" / "file").write_text("x")
    publish(temporary, tmp_path / "name")
    assert (tmp_path / "name" / "inner" / "file").read_text() == "x"
    assert not temporary.exists()
