"""The files of a run's folder, and the checks before a run is written there.

::

    config.yaml        the run's configuration
    metrics.jsonl      one line per optimizer step and per evaluation
    conditioning.csv   the monitor's records, one line per matrix, if the run has one
    checkpoints/       step-00000100/ ...: complete ones only
    tensorboard/       the same numbers, where TensorBoard is installed
    model.safetensors  the weights that were evaluated at the end
    pictures/          the task's pictures, if it has any
    report.html        a page with the metrics, the settings and the pictures
    result.json        validation and test metrics, configuration, versions, hardware
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from ..._files import write_atomically
from .config import TrainConfig


class RunFolder:
    """Paths of a run, and the checks before one starts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.conditioning = path / "conditioning.csv"
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tensorboard"
        self.weights = path / "model.safetensors"
        self.pictures = path / "pictures"
        self.report = path / "report.html"
        self.result = path / "result.json"

    def _present(self) -> list[Path]:
        files = (self.config, self.metrics, self.conditioning, self.weights, self.report, self.result)
        folders = (self.checkpoints, self.tensorboard, self.pictures)
        return [path for path in (*files, *folders) if path.exists()]

    def check(self, config: TrainConfig, *, resume: bool, overwrite: bool) -> None:
        """Raise, before any work is done, if a run of ``config`` may not or cannot be written here.

        Raises:
            ValueError: there is a run already, or none to resume, or one of another configuration.
            OSError: the folder cannot be made or written to.
        """
        if resume:
            self._check_same(config)
        elif self._present() and not overwrite:
            raise ValueError(
                f"output folder {self.path} already holds a run ({self._present()[0].name}); resume it (--resume), "
                "replace it (--overwrite), or choose another folder"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise OSError(f"output folder {self.path} cannot be written to: {error.strerror or error}") from error

    def begin(self, config: TrainConfig) -> None:
        """Remove the files of an earlier run, and nothing else, and write the configuration of this one."""
        for path in self._present():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        write_atomically(self.config, config.to_yaml())

    def _check_same(self, config: TrainConfig) -> None:
        if not self.config.exists():
            raise ValueError(f"nothing to resume: output folder {self.path} holds no run; start it without --resume")
        saved = TrainConfig.from_yaml(self.config.read_text(encoding="utf-8"), source=str(self.config))
        before, now = flatten(saved.to_dict()), flatten(config.to_dict())
        names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        differences = [f"{name} was {before.get(name)!r}, is {now.get(name)!r}" for name in names]
        if differences:
            raise ValueError(
                f"the run in {self.path} has another configuration: {'; '.join(differences)}. "
                "Resume it with its own, or choose another folder"
            )


def flatten(options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options by their full names, such as ``precondition.gradient``."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
