from pathlib import Path

import pytest

from preconditioned_attention.lab.training import ARMS, TrainConfig
from preconditioned_attention.lab.training.folder import RunFolder
from tests.helpers.toy_task import toy_config


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.check(toy_config(), resume=False, overwrite=False)
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


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to resume"):
        RunFolder(tmp_path / "no").check(toy_config(), resume=True, overwrite=False)
    assert not (tmp_path / "no").exists()


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match="cannot be written to"):
            RunFolder(path).check(toy_config(), resume=False, overwrite=False)
