"""transformers' folders: a preconditioned model saved with `save_pretrained` comes back as one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import PreconditionConfig
from .convert import CONFIG_ENTRY, precondition_, preconditioned_modules


def from_pretrained(model_class: Any, folder: str | Path) -> nn.Module:
    """Load a model that was converted and then saved with `save_pretrained`, converted as it was.

    `from_pretrained` of transformers builds a plain model, and only says that it found keys it had no place for. This
    builds the same, converts it by what the folder's `config.json` says, and loads the gains, if there are any.

    Args:
        model_class: a class of transformers with `from_pretrained`, such as ``AutoModelForCausalLM``.
        folder: what `save_pretrained` wrote.

    Raises:
        ValueError: the folder's model was not saved preconditioned, or some of its gains are missing.
        OSError: the folder cannot be read.
    """
    model: Any = model_class.from_pretrained(str(folder), local_files_only=True)
    options = getattr(model.config, CONFIG_ENTRY, None)
    if options is None:
        raise ValueError(
            f"{folder} holds a plain model: its config.json has no {CONFIG_ENTRY!r}. Load it with "
            f"{getattr(model_class, '__name__', 'the class')}.from_pretrained, and call precondition_(model)"
        )
    config = PreconditionConfig.from_dict(options["config"])
    saved = options["modules"]
    precondition_(
        model, config, filter_fn=lambda module, path: any(_same(path, s) for s in saved), marker=options["marker"]
    )
    if config.gain is not None:
        _load_gains(model, Path(folder))
    return model


def _same(name: str, saved: str) -> bool:
    """With a head on one of the two, the names of model and file differ by a prefix."""
    return name == saved or name.endswith(f".{saved}") or saved.endswith(f".{name}")


def _load_gains(model: nn.Module, folder: Path) -> None:
    saved = dict(_saved_gains(folder))
    for path, module in preconditioned_modules(model):
        found = [value for key, value in saved.items() if _same(f"{path}.preconditioner.gain", key)]
        if len(found) != 1:
            raise ValueError(f"the weights in {folder} have {len(found)} gains for {path!r}; one was expected")
        gain = module.get_parameter("preconditioner.gain")
        with torch.no_grad():
            gain.copy_(found[0])


def _saved_gains(folder: Path) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for key in weights.keys():  # noqa: SIM118 - it is no mapping
                if key.endswith(".preconditioner.gain"):
                    yield key, weights.get_tensor(key)
