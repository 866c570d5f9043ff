import json
from pathlib import Path

import pytest
from torch import nn

from preconditioned_attention.lab.reporting import Picture
from preconditioned_attention.lab.tasks import TASKS
from preconditioned_attention.lab.training import WriteError, train
from preconditioned_attention.lab.training.report import build_run_page
from tests.helpers.toy_task import Toy, toy_config

PNG = b"\x89PNG\r\n\x1a\n"


class Drawing(Toy):
    """Shows its weights, in words."""

    name = "drawing"

    def pictures(self, model: nn.Module) -> dict[str, Picture]:
        assert not model.training
        return {"weights": Picture(PNG, f"{sum(p.numel() for p in model.parameters())} weights", "a caption")}


@pytest.fixture
def drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "drawing", Drawing)


def test_metrics_pictures_and_settings_are_on_the_page(drawing: None, tmp_path: Path) -> None:
    result = train(toy_config(task="drawing"), tmp_path / "run", progress=False)
    assert (tmp_path / "run" / "pictures" / "weights.png").read_bytes() == PNG
    page = (tmp_path / "run" / "report.html").read_text()
    accuracy = f"{result.test['accuracy']:.4f}"
    for text in (accuracy, "163 weights", "a caption", "data:image/png;base64", "learning_rate"):
        assert text in page
    assert result.pictures["weights"].description == "163 weights"
    assert "pictures" not in (tmp_path / "run" / "result.json").read_text()


def test_a_task_without_pictures_has_a_page_all_the_same(tmp_path: Path) -> None:
    result = train(toy_config(), tmp_path / "run", progress=False)
    assert [section.title for section in build_run_page(result).sections] == ["Metrics", "Settings"]
    assert (tmp_path / "run" / "report.html").exists()
    assert not (tmp_path / "run" / "pictures").exists()
    train(toy_config(), tmp_path / "run", overwrite=True, progress=False)


def test_pictures_of_an_earlier_run_go_with_it(drawing: None, tmp_path: Path) -> None:
    train(toy_config(task="drawing"), tmp_path / "run", progress=False)
    train(toy_config(), tmp_path / "run", overwrite=True, progress=False)
    assert not (tmp_path / "run" / "pictures").exists()


def test_a_page_that_cannot_be_written(drawing: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr("preconditioned_attention.lab.training.report.write_atomically", full)
    with pytest.raises(WriteError, match="the report of the run could not be written: no room"):
        train(toy_config(task="drawing"), tmp_path / "run", progress=False)


class Writing(Toy):
    """Says the same whatever its weights are."""

    name = "writing"

    def samples(self, model: nn.Module) -> dict[str, str]:
        return {"from nothing": "once upon\n  a time"}

    def describe_data(self) -> dict[str, str]:
        return {"sha256": "abc123"}


def test_samples_and_data_are_on_the_page_and_in_the_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(TASKS, "writing", Writing)
    train(toy_config(task="writing"), tmp_path / "run", progress=False)
    page = (tmp_path / "run" / "report.html").read_text()
    for text in ("Samples of the model", "once upon\n  a time", "data.sha256", "abc123"):
        assert text in page
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["samples"], result["data"]) == ({"from nothing": "once upon\n  a time"}, {"sha256": "abc123"})
