import errno
import json
import threading
from pathlib import Path

import pytest

from preconditioned_attention.lab.training import WriteError, train
from tests.helpers.toy_task import toy_config

files = pytest.importorskip("tensorboard.compat.tensorflow_stub.io.gfile")


def fill(monkeypatch: pytest.MonkeyPatch, *, after: int) -> None:
    """The disk is full when TensorBoard's thread has written so many times."""
    calls, write = iter(range(10**6)), files.LocalFileSystem._write

    def full(*args: object) -> None:
        if next(calls) >= after:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(*args)

    monkeypatch.setattr(files.LocalFileSystem, "_write", full)


@pytest.mark.parametrize("after", [0, 1, 20])
def test_a_full_disk_is_said_with_the_folder_and_without_a_traceback(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    former = threading.excepthook
    config = toy_config(steps=40, checkpoint_every=10)
    with monkeypatch.context() as patched:
        fill(patched, after=after)
        with pytest.raises(WriteError, match=f"^{tmp_path}/run/tensorboard could not be written: No space left"):
            train(config, tmp_path / "run", progress=False)
    assert capfd.readouterr().err == ""
    assert threading.excepthook == former
    resumed = train(config, tmp_path / "run", resume=True, progress=False)
    assert resumed.losses == train(config, tmp_path / "whole", progress=False).losses


def test_a_disk_that_is_full_at_the_end_loses_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    close = pytest.importorskip("torch.utils.tensorboard").SummaryWriter.close

    def full(self: object) -> None:
        close(self)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.close", full)
    train(toy_config(), tmp_path, progress=False)
    assert json.loads((tmp_path / "result.json").read_text())["step"] == 12
