import datetime
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from preconditioned_attention.lab.training import ARMS, TrainConfig
from preconditioned_attention.lab.training.folder import RunFolder
from tests.helpers.toy_task import toy_config


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.check(toy_config(), resume=False, overwrite=False)
    folder.make()
    folder.begin(toy_config())
    return folder


def test_the_configuration_is_kept(folder: RunFolder) -> None:
    assert TrainConfig.from_yaml(folder.config.read_text()) == toy_config()


def test_a_run_is_not_written_over(folder: RunFolder) -> None:
    with pytest.raises(
        ValueError, match=r"already holds a run \(config.yaml\); resume it .*replace it .*another folder"
    ):
        folder.check(toy_config(), resume=False, overwrite=False)


def test_overwriting_removes_the_run_and_nothing_else(folder: RunFolder) -> None:
    (folder.checkpoints / "step-00000003").mkdir(parents=True)
    folder.result.write_text("{}")
    own = folder.path / "notes.txt"
    own.write_text("mine")
    folder.check(toy_config(seed=1), resume=False, overwrite=True)
    assert folder.result.exists()  # checking removes nothing
    folder.begin(toy_config(seed=1))
    assert sorted(path.name for path in folder.path.iterdir()) == ["config.yaml", "notes.txt"]


def test_resuming_the_same_run(folder: RunFolder) -> None:
    folder.check(toy_config(), resume=True, overwrite=False)


def test_resuming_another_configuration_shows_what_differs(folder: RunFolder) -> None:
    other = toy_config(seed=2, task_options={"hidden": 3}, precondition=ARMS["row"])
    with pytest.raises(ValueError) as caught:
        folder.check(other, resume=True, overwrite=False)
    message = str(caught.value)
    assert "seed was 0, is 2" in message
    assert "task_options.hidden was None, is 3" in message
    assert "precondition.gradient was None, is 'full'" in message
    assert "learning_rate" not in message


def test_a_folder_without_a_run_may_be_resumed(tmp_path: Path) -> None:
    RunFolder(tmp_path / "no").check(toy_config(), resume=True, overwrite=False)
    assert not (tmp_path / "no").exists()


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match="cannot be written to"):
            RunFolder(path).make()


@pytest.mark.parametrize("kept", range(7))
def test_killed_while_it_removes_a_run(folder: RunFolder, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is left belongs to the old configuration, and no result is left without its checkpoints."""
    (folder.checkpoints / "step-00000003").mkdir(parents=True)
    folder.pictures.mkdir()
    for path in (folder.metrics, folder.weights, folder.report, folder.result):
        path.write_text("{}")
    calls = iter(range(100))
    for name in ("unlink", "rename", "replace"):
        monkeypatch.setattr(Path, name, _killed_after(getattr(Path, name), calls, kept))
    with pytest.raises(KeyboardInterrupt):
        folder.begin(toy_config(seed=1))
    monkeypatch.undo()
    assert folder.read_config() == toy_config()
    assert folder.checkpoints.exists() or not folder.result.exists()


def _killed_after(function: Callable[..., object], calls: Iterator[int], count: int) -> Callable[..., object]:
    def until_killed(*args: object, **options: object) -> object:
        if next(calls) >= count:
            raise KeyboardInterrupt
        return function(*args, **options)

    return until_killed


@pytest.mark.parametrize(
    ("name", "value"),
    [("scale", math.nan), ("scale", math.inf), ("root", Path("data")), ("day", datetime.date.today())],
)
def test_options_that_no_file_can_hold_are_refused_at_once(tmp_path: Path, name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"task_options\.{name} must be text, a finite number"):
        RunFolder(tmp_path).check(toy_config(task_options={name: value}), resume=False, overwrite=False)
