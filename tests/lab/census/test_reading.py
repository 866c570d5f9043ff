import json
from pathlib import Path

import pytest
from torch import nn

from preconditioned_attention.conversion.source_texts import known_texts
from preconditioned_attention.lab.census.reading import readings, record, unread

QUICK = ["diffusers", "open_clip", "timm", "torch", "torchvision", "x_transformers"]


@pytest.mark.parametrize("library", QUICK)
def test_everything_of_the_installed_version_was_read(library: str) -> None:
    assert readings(library)
    assert [reading.name for reading in unread(library)] == []


@pytest.mark.slow
def test_everything_of_the_installed_transformers_was_read() -> None:
    found = readings("transformers")
    assert sum(reading.by_look_up for reading in found) > 400
    assert [reading.name for reading in found if not reading.is_known()] == []


def test_of_a_library_that_is_not_known() -> None:
    with pytest.raises(ValueError, match=r"unknown library 'tim' \(did you mean 'timm'\?\)"):
        readings("tim")


def test_what_is_new_is_recorded_once_it_was_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table = tmp_path / "known_texts.json"
    copied = json.loads(known_texts.TABLE.read_text())
    monkeypatch.setattr(known_texts, "known_texts", lambda: copied)
    monkeypatch.setattr("preconditioned_attention.lab.census.reading.known_texts", lambda: copied)
    monkeypatch.setattr(nn.MultiheadAttention, "forward", lambda self, *args: args)
    (new,) = unread("torch")
    assert new.name == "torch.nn.modules.activation.MultiheadAttention"
    assert "lambda self, *args: args" in new.code()
    record([new], "torch", table)
    assert unread("torch") == ()
    before, after = (json.loads(path.read_text()) for path in (known_texts.TABLE, table))
    assert set(before["torch"]["classes"][new.name]) < set(after["torch"]["classes"][new.name])
    assert {library: after[library] for library in after if library != "torch"} == {
        library: before[library] for library in before if library != "torch"
    }


def test_the_table_is_written_in_one_way(tmp_path: Path) -> None:
    """So that a record changes the lines of what it adds, and no other."""
    table = tmp_path / "known_texts.json"
    record((), "torch", table)
    assert table.read_text() == known_texts.TABLE.read_text()
