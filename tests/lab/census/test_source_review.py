import json
from pathlib import Path

import pytest
from torch import nn

from preconditioned_attention.conversion.source_texts import known_texts
from preconditioned_attention.lab.census.source_review import record_review, source_texts, unreviewed

QUICK = ["diffusers", "open_clip", "timm", "torch", "torchvision", "x_transformers"]


@pytest.mark.parametrize("library", QUICK)
def test_everything_of_the_installed_version_was_read(library: str) -> None:
    assert source_texts(library)
    assert [text.name for text in unreviewed(library)] == []


@pytest.mark.slow
def test_everything_of_the_installed_transformers_was_read() -> None:
    found = source_texts("transformers")
    assert sum(text.by_lookup for text in found) > 400
    assert [text.name for text in found if not text.is_reviewed()] == []


def test_of_a_library_that_is_not_known() -> None:
    with pytest.raises(ValueError, match=r"unknown library 'tim' \(did you mean 'timm'\?\)"):
        source_texts("tim")


def test_what_is_new_is_recorded_once_it_was_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table = tmp_path / "known_texts.json"
    copied = json.loads(known_texts.TABLE.read_text())
    monkeypatch.setattr(known_texts, "known_texts", lambda: copied)
    monkeypatch.setattr("preconditioned_attention.lab.census.source_review.known_texts", lambda: copied)
    monkeypatch.setattr(nn.MultiheadAttention, "forward", lambda self, *args: args)
    (new,) = unreviewed("torch")
    assert new.name == "torch.nn.modules.activation.MultiheadAttention"
    assert "lambda self, *args: args" in new.code()
    record_review([new], "torch", table)
    assert unreviewed("torch") == ()
    before, after = (json.loads(path.read_text()) for path in (known_texts.TABLE, table))
    assert set(before["torch"]["classes"][new.name]) < set(after["torch"]["classes"][new.name])
    assert {library: after[library] for library in after if library != "torch"} == {
        library: before[library] for library in before if library != "torch"
    }


def test_the_table_is_written_in_one_way(tmp_path: Path) -> None:
    """So that a record_review changes the lines of what it adds, and no other."""
    table = tmp_path / "known_texts.json"
    record_review((), "torch", table)
    assert table.read_text() == known_texts.TABLE.read_text()
