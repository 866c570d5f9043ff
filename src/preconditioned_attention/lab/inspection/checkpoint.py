"""Loading of checkpoint files into a model."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..._extras import require
from ...config import PreconditionConfig
from ...conversion import precondition_
from ...layers.mark import Mark, read_mark

_MARK = ".preconditioner.requires_preconditioned_attention"
_WRAPPERS = ("state_dict", "model", "module")  # keys under which training scripts save the weights
_PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
_SHOWN = 3


def load_checkpoint(model: nn.Module, path: Path) -> str:
    """Load the weights in ``path`` into ``model``, which is converted first if they were trained preconditioned.

    Reads files of `safetensors` and `torch.save` (tensors only). A classifier of another size, and weights without a
    counterpart in the model (such as a head), are skipped.

    Returns:
        A description of what was loaded.

    Raises:
        OSError: the file does not exist or cannot be read.
        ValueError: it holds no weights, or those of another architecture.
    """
    found = _without_prefix(_read(path), getattr(model, "base_model_prefix", ""))
    converted = _convert_as_marked(model, found, path)
    own = model.state_dict()
    classifier = str((getattr(model, "pretrained_cfg", None) or {}).get("classifier", ""))
    odd = [key for key in own if key in found and own[key].shape != found[key].shape]
    head = [key for key in odd if classifier and key.startswith(f"{classifier}.")]
    missing = [key for key in own if key not in found]
    other = [f"{key} {tuple(found[key].shape)} instead of {tuple(own[key].shape)}" for key in odd if key not in head]
    if missing or other:
        raise ValueError(
            f"checkpoint: {path} does not fit this model: {_named('missing', missing)}; "
            f"{_named('of another shape', other)}. Is the architecture the same?"
        )
    unused = [key for key in found if key not in own]
    model.load_state_dict({key: value for key, value in found.items() if key in own and key not in head}, strict=False)
    notes = [converted, _named("without a counterpart", unused) if unused else ""]
    notes.append(_named("of another size, left random", head) if head else "")
    return "; ".join([f"weights from {path.name}", *filter(None, notes)])


def _named(what: str, keys: list[str]) -> str:
    shown = ", ".join(keys[:_SHOWN])
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return f"{len(keys)} {what}" + (f" ({shown}{more})" if keys else "")


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: {path} is not a file")
    try:
        if path.suffix == ".safetensors":
            content: Any = require("safetensors.torch", extra="train").load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, ImportError, MemoryError):
        raise
    except Exception as error:
        # Invalid files raise various errors; safetensors has its own.
        hint = " (only tensors are read, no other objects)" if isinstance(error, pickle.UnpicklingError) else ""
        raise ValueError(f"checkpoint: {path} cannot be read as weights{hint}: {str(error).splitlines()[0]}") from error
    for name in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    if not isinstance(content, Mapping):
        raise ValueError(
            f"checkpoint: {path} holds a {type(content).__name__}; a mapping of names to tensors is needed"
        )
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"checkpoint: {path} holds no tensors")
    return tensors


def _without_prefix(found: dict[str, Tensor], base: str) -> dict[str, Tensor]:
    """Names without the prefixes of wrappers, and of the base model in a transformers model with a head."""
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in found):
            found = {key.removeprefix(prefix): value for key, value in found.items()}
    return {key.removeprefix(f"{base}."): value for key, value in found.items()} if base else found


def _convert_as_marked(model: nn.Module, found: dict[str, Tensor], path: Path) -> str:
    """Convert the attention that the checkpoint marks as preconditioned; return a description, or an empty string."""
    marks = {
        key.removesuffix(_MARK): _read_mark(value, f"{path}: {key}")
        for key, value in found.items()
        if key.endswith(_MARK)
    }
    if not marks:
        return ""
    first = next(iter(marks.values()))
    if any(mark != first for mark in marks.values()):
        raise ValueError(f"checkpoint: {path} has marks of several kinds: {sorted(map(str, set(marks.values())))}")
    has_gain = any(key.endswith(".preconditioner.gain") for key in found)
    config = PreconditionConfig(
        gradient=first.gradient,
        placement=first.placement,
        gain=1.0 if has_gain else None,
    )
    precondition_(model, config, include="all", filter_fn=lambda module, name: name in marks)
    return f"trained with preconditioned attention in {len(marks)} layers, which were converted"


def _read_mark(mark: Tensor, where: str) -> Mark:
    try:
        return read_mark(mark)
    except ValueError as error:
        raise ValueError(f"checkpoint: {where}: {error}") from error
