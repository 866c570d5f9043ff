"""Loading of checkpoint files into a model."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..._checks import naming_source
from ..._extras import require
from ...config import PreconditionConfig
from ...conversion import precondition_
from ...layers.mark import Mark, read_mark
from ..data.image_files import one_line

_MARK = ".preconditioner.requires_preconditioned_attention"
_WRAPPERS = ("state_dict", "model", "module")  # keys under which training scripts save the weights
_PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
_SHOWN = 3


def load_checkpoint(model: nn.Module, path: Path) -> str:
    """Load the weights in ``path`` into ``model``, which is converted first if they were trained preconditioned.

    Reads files of `safetensors` and `torch.save` (tensors only). A classifier of another size, and weights without a
    counterpart in the model (such as a head), are skipped. The others must be finite and of the kind of number that the
    model holds: casting would drop an imaginary part, and integers are quantized weights without their scales.

    Returns:
        A description of what was loaded.

    Raises:
        OSError: the file does not exist or cannot be read.
        ValueError: it holds no weights, those of another architecture, or values that the model cannot take.
    """
    found = _without_prefix(_read(path), getattr(model, "base_model_prefix", ""), path)
    converted = _convert_as_marked(model, found, path)
    own = model.state_dict()
    classifier = str((getattr(model, "pretrained_cfg", None) or {}).get("classifier", ""))
    odd = [key for key in own if key in found and not _is_mark(key) and own[key].shape != found[key].shape]
    head = [key for key in odd if classifier and key.startswith(f"{classifier}.")]
    missing = [key for key in own if key not in found]
    other = [f"{key} {tuple(found[key].shape)} instead of {tuple(own[key].shape)}" for key in odd if key not in head]
    if missing or other:
        raise ValueError(
            f"checkpoint: {path} does not fit this model: {_named('missing', missing)}; "
            f"{_named('of another shape', other)}. Is the architecture the same?"
        )
    unused = [key for key in found if key not in own]
    taken = {key: value for key, value in found.items() if key in own and key not in head and not _is_mark(key)}
    for key, value in taken.items():
        if reason := _unusable(value, own[key]):
            raise ValueError(f"checkpoint: {path}: {key} {reason}; an inspection needs the weights as trained")
    model.load_state_dict(taken, strict=False)
    notes = [converted, _named("without a counterpart", unused) if unused else ""]
    notes.append(_named("of another size, left random", head) if head else "")
    return "; ".join([f"weights from {path.name}", *filter(None, notes)])


def _unusable(value: Tensor, own: Tensor) -> str:
    """Why a tensor cannot stand in place of ``own``; empty if it can."""
    if value.is_meta or value.is_quantized or value.layout is not torch.strided:
        form = "on the meta device" if value.is_meta else "quantized" if value.is_quantized else "sparse"
        return f"is {form}, and plain numbers are expected"
    kinds = [_kind(one.dtype) for one in (value, own)]
    if kinds[0] != kinds[1]:
        return f"holds {kinds[0]} ({str(value.dtype).removeprefix('torch.')}), and the model holds {kinds[1]}"
    if not own.is_floating_point():
        return ""
    wrong = value.numel() - int(value.isfinite().sum())
    if wrong:
        return f"has {wrong} entries of {value.numel()} that are NaN or infinite"
    if not value.to(own.dtype).isfinite().all():
        return f"has entries beyond {str(own.dtype).removeprefix('torch.')}, the largest {float(value.abs().max()):.3g}"
    return ""


def _kind(dtype: torch.dtype) -> str:
    if dtype.is_complex:
        return "complex numbers"
    if dtype.is_floating_point:
        return "numbers of 8 bits or less without their scale" if dtype.itemsize < 2 else "real numbers"
    return "truth values" if dtype is torch.bool else "integers"


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
        reason = one_line(error)
        if isinstance(error, pickle.UnpicklingError | EOFError):
            reason = "it is no file of torch.save, or not of tensors (only tensors are read, no other objects)"
        raise ValueError(f"checkpoint: {path} cannot be read as weights: {reason}") from error
    for name in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    if not isinstance(content, Mapping):
        raise ValueError(
            f"checkpoint: {path} holds a {type(content).__name__}; a mapping of names to tensors is needed"
        )
    # A mark that is no tensor has to be seen: without it the weights would be taken for plain ones.
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor) or _is_mark(key)}
    if not tensors:
        raise ValueError(f"checkpoint: {path} holds no tensors")
    return tensors


def _is_mark(key: object) -> bool:
    return str(key).endswith(_MARK)


def _without_prefix(found: dict[str, Tensor], base: str, path: Path) -> dict[str, Tensor]:
    """Names without the prefixes of wrappers, and of the base model in a transformers model with a head."""
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in found):
            found = {key.removeprefix(prefix): value for key, value in found.items()}
    if not base:
        return found
    bare = {key.removeprefix(f"{base}."): value for key, value in found.items()}
    if len(bare) < len(found):
        twice = next(key for key in found if key.startswith(f"{base}.") and key.removeprefix(f"{base}.") in found)
        raise ValueError(
            f"checkpoint: {path} holds {twice.removeprefix(f'{base}.')} twice, also as {twice}; remove one"
        )
    return bare


def _convert_as_marked(model: nn.Module, found: dict[str, Tensor], path: Path) -> str:
    """Convert the attention that the checkpoint marks as preconditioned; return a description, or an empty string."""
    marks = {
        key.removesuffix(_MARK): _read_mark(value, f"{path}: {key}") for key, value in found.items() if _is_mark(key)
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
    with naming_source(f"checkpoint: {path}"):
        precondition_(model, config, include="all", filter_fn=lambda module, name: name in marks)
    return f"trained with preconditioned attention in {len(marks)} layers, which were converted"


def _read_mark(mark: Tensor, where: str) -> Mark:
    try:
        return read_mark(mark)
    except (ValueError, TypeError, RuntimeError) as error:  # of a sparse or a complex tensor
        raise ValueError(f"checkpoint: {where}: {str(error).splitlines()[0]}") from error
