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

import json
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
        """What there is of a run: its configuration first, its result last."""
        folders = (self.checkpoints, self.tensorboard, self.pictures)
        files = (self.config, self.metrics, self.conditioning, *folders, self.weights, self.report, self.result)
        return [path for path in files if path.exists() or path.is_symlink()]

    def make(self) -> None:
        """Make the folder, and check that it can be written to.

        Raises:
            OSError: it cannot be made or written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise OSError(f"output folder {self.path} cannot be written to: {error.strerror or error}") from error

    def check(self, config: TrainConfig, *, resume: bool, overwrite: bool) -> None:
        """Raise, before any work is done, if a run of ``config`` may not be written here.

        Raises:
            ValueError: there is a run already, or the one to resume has another configuration or cannot be recognized.
            OSError: its configuration cannot be read.
        """
        _check_plain(config)
        present = self._present()
        if resume and present:
            self._check_kinds(present)
            self._check_same(config)
        elif present and not overwrite:
            raise ValueError(
                f"output folder {self.path} already holds a run ({present[0].name}); resume it (--resume), "
                "replace it (--overwrite), or choose another folder"
            )

    def begin(self, config: TrainConfig) -> None:
        """Remove the files of an earlier run, and nothing else, and write the configuration of this one.

        If it is killed meanwhile, the folder holds less of the earlier run, and never what looks like another one: its
        result goes first and its configuration last, and a folder is renamed before it is removed.

        Raises:
            OSError: a file cannot be removed or written.
        """
        for path in reversed(self._present()):
            if path.is_dir() and not path.is_symlink():
                removed = path.with_name(f".{path.name}.removed")
                shutil.rmtree(removed, ignore_errors=True)
                shutil.rmtree(path.rename(removed))
            elif path != self.config:
                path.unlink()
        write_atomically(self.config, config.to_yaml())

    def _check_kinds(self, present: list[Path]) -> None:
        folders = (self.checkpoints, self.tensorboard, self.pictures)
        for path in present:
            if not (path.is_dir() if path in folders else path.is_file()):
                kind = "folder" if path in folders else "file"
                raise ValueError(f"{path} must be a {kind}; replace the run (--overwrite), or choose another folder")

    def _check_same(self, config: TrainConfig) -> None:
        before, now = flatten(self.read_config().to_dict()), flatten(config.to_dict())
        names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        differences = [f"{name} was {before.get(name)!r}, is {now.get(name)!r}" for name in names]
        if differences:
            raise ValueError(
                f"the run in {self.path} has another configuration: {'; '.join(differences)}. "
                "Resume it with its own, or choose another folder"
            )

    def read_config(self) -> TrainConfig:
        """The configuration of the run that is here.

        Raises:
            ValueError: ``config.yaml`` is missing or is no configuration. OSError: it cannot be read.
        """
        advice = "replace the run (--overwrite), or choose another folder"
        try:
            text = self.config.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ValueError(
                f"{self.path} holds files of a run ({self._present()[0].name}) but not {self.config}, so it is not "
                f"known of which; {advice}"
            ) from None
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.config} is not UTF-8 text: {error.reason}; {advice}") from error
        except OSError as error:
            raise OSError(f"{self.config} cannot be read: {error.strerror or error}; {advice}") from error
        try:
            return TrainConfig.from_yaml(text, source=str(self.config))
        except (ValueError, TypeError) as error:
            named = str(error) if str(self.config) in str(error) else f"{self.config}: {error}"
            raise ValueError(f"{named}; {advice}") from error


def _check_plain(config: TrainConfig) -> None:
    """Raise unless the configuration can be written as YAML and as strict JSON."""
    for name, value in flatten(config.to_dict()).items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} must be text, a finite number, true, false, or a list; got {value!r}") from error


def flatten(options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options by their full names, such as ``precondition.gradient``."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
