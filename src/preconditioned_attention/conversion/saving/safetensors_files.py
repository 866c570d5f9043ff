"""Safetensors files with the conversion of the model in their metadata.

The mark in the state dict, unless it is disabled, says that a checkpoint was trained with preconditioned attention. The
metadata has the options of every module, and can be read without loading anything.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from ..._extras import require
from ..._files import publish
from ...selection import split_options
from ..attachment import preconditioned_modules, preconditioner_of

CONFIG_ENTRY = "preconditioned_attention"
"""The key of the conversion in the metadata of a file."""

MARKS_ENTRY = f"{CONFIG_ENTRY}_marks"

_MARK = ".preconditioner.requires_preconditioned_attention"
_FREE = ("backend", "gradient")  # may differ between a file and the model: outputs are the same


def conversion_metadata(model: nn.Module) -> dict[str, str]:
    """Metadata that describes the conversion of ``model``, for `safetensors.torch.save_file`.

    ``"preconditioned_attention"`` is JSON, from the path of every converted module to its options;
    ``"preconditioned_attention_marks"`` lists the modules with a mark in the state dict. Empty for a plain model.
    """
    modules = converted_options(model)
    marked = [path for path, module in preconditioned_modules(model) if path in modules and _is_marked(module)]
    return {CONFIG_ENTRY: json.dumps(modules, sort_keys=True), MARKS_ENTRY: json.dumps(marked)} if modules else {}


def save_safetensors(model: nn.Module, path: str | Path) -> None:
    """Write the weights of ``model`` and, in the metadata, how it was converted (``safetensors``, extra ``train``).

    Args:
        model: converted or plain.
        path: the file; an existing one is replaced once the new one is complete.

    Raises:
        OSError: it could not be written; a file that was there is as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.writing")
    metadata = {"format": "pt", **conversion_metadata(model)}
    try:
        require("safetensors.torch", extra="train").save_model(model, str(temporary), metadata=metadata)
        publish(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load_safetensors(model: nn.Module, path: str | Path) -> None:
    """Load the weights in ``path`` into ``model``, if both have the same conversion.

    A file without such metadata is loaded as by safetensors, into a converted model with a warning. A file whose model
    had another ``gradient`` is loaded with a warning too: that changes further training and no output.

    Raises:
        ValueError: the file says that other modules were converted, or with other options, or its metadata says that
            there are marks in it and there are not, or the reverse; nothing was loaded.
        RuntimeError: names or shapes do not fit.
        OSError: the file cannot be read.
    """
    saved, own = _saved_modules(Path(path)), converted_options(model)
    if saved is not None:
        check_alike(saved, own, Path(path))
    if not all(_is_marked(module) for _, module in preconditioned_modules(model)):
        _warn_unmarked(saved, own, Path(path))
    require("safetensors.torch", extra="train").load_model(model, str(path))


def _warn_unmarked(saved: dict[str, dict[str, Any]] | None, own: dict[str, dict[str, Any]], path: Path) -> None:
    """The warnings that a module with a mark gives itself when it is loaded."""
    if saved is None:
        warnings.warn(
            f"{path} does not say that it was trained with preconditioned attention, and the model is preconditioned; "
            "call restore_(model) to run the checkpoint as it was",
            stacklevel=3,
        )
    elif any(saved[name].get("gradient") != options["gradient"] for name, options in own.items()):
        gradients = {str(options.get("gradient")) for options in saved.values()}
        warnings.warn(
            f"{path} was trained with gradient={' and '.join(sorted(gradients))!r} and the model has another: outputs "
            "are the same, further training is not",
            stacklevel=3,
        )


def converted_options(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Path -> options of every converted module."""
    found = {}
    for path, module in preconditioned_modules(model):
        preconditioner = preconditioner_of(module)
        if preconditioner.origin != "probe":
            found[path] = preconditioner.config.to_dict()
    return found


def _is_marked(module: nn.Module) -> bool:
    return any(_MARK.endswith(f".{key}") for key in module.get_submodule("preconditioner").state_dict())


def _saved_modules(path: Path) -> dict[str, dict[str, Any]] | None:
    with require("safetensors", extra="train").safe_open(str(path), framework="pt") as weights:
        metadata, keys = weights.metadata() or {}, weights.keys()
    if CONFIG_ENTRY not in metadata:
        return None
    modules: dict[str, dict[str, Any]] = json.loads(metadata[CONFIG_ENTRY])
    _check_marks(
        modules, metadata.get(MARKS_ENTRY), {key.removesuffix(_MARK) for key in keys if key.endswith(_MARK)}, path
    )
    return modules


def _check_marks(modules: dict[str, Any], said: str | None, found: set[str], path: Path) -> None:
    """Raise if the metadata and the weights disagree, as when metadata was copied to the weights of another model."""
    missing = set() if said is None else set(json.loads(said)) - found
    for name in sorted(missing | (found - set(modules))):
        says, weights = (
            ("preconditioned", "do not mark it") if name in missing else ("plain", "mark it as preconditioned")
        )
        raise ValueError(
            f"{path}: the metadata says that {name!r} is {says}, and the weights {weights}; the weights decide: write "
            "the file anew with save_safetensors, from a model that is what the weights say"
        )


def check_alike(saved: dict[str, dict[str, Any]], own: dict[str, dict[str, Any]], path: Path) -> None:
    """Raise unless a file and a model have the same converted modules with the same options, up to `_FREE`."""
    for name in sorted(saved.keys() | own.keys()):
        if name not in own:
            raise ValueError(
                f"{path} was saved with {name!r} preconditioned ({len(saved)} modules in all), and the model's is "
                f"plain; call precondition_(model, {split_options(saved[name])[0]!r}) before loading, with "
                "include='all' if that leaves it plain"
            )
        if name not in saved:
            raise ValueError(f"{path} was saved with {name!r} plain, and the model's is preconditioned; leave it out")
        differing = [key for key, value in own[name].items() if saved[name].get(key) != value]
        if set(differing) - set(_FREE):
            saved_options = ", ".join(f"{key}={saved[name].get(key)!r}" for key in differing)
            raise ValueError(
                f"{path} was saved with {saved_options} at {name!r}, and the model has other options; use the file's"
            )
