"""`from_pretrained`: loading preconditioned models that transformers' `save_pretrained` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..._extras import require
from ...layers.mark import Mark, is_current, read_mark
from ...selection import split_options
from ..attachment import preconditioned_modules, preconditioner_of
from ..convert import precondition_
from ..plan import FilterFn
from ..registry import find_adapter
from ..sharding import shard_gains_

_MARKER = "requires_preconditioned_attention"


def from_pretrained(model_class: Any, folder: str | Path | None, **kwargs: Any) -> Any:
    """Load a converted model that `save_pretrained` wrote, with its conversion.

    transformers' own `from_pretrained` raises for such a folder. This function takes the same arguments, and converts
    the model as `config.json` describes before the weights, which include gains, are loaded. It raises if the marks in
    the weights and `config.json` disagree.

    Args:
        model_class: a class of transformers with `from_pretrained`, such as ``AutoModelForCausalLM``.
        folder: what `save_pretrained` wrote, or its name on the hub; None if ``state_dict`` and ``config`` are given.
        kwargs: of `from_pretrained` of transformers: ``dtype``, ``device_map``, ``attn_implementation``, ``revision``,
            ``subfolder``, ``output_loading_info``, ``config``, ...

    Returns:
        What `from_pretrained` of transformers returns for these arguments.

    Raises:
        ValueError: the folder's model was not saved preconditioned, its weights and its config.json disagree, or
            gains are missing.
        OSError: the folder cannot be read.
    """
    if not isinstance(model_class, type) or not hasattr(model_class, "from_pretrained"):
        raise TypeError(f"model_class must be a class of transformers with from_pretrained; got {model_class!r}")
    require("transformers", extra="language")
    from .standalone import preconditioned_folder as folders

    config, entry, rest = _read_config(folders, model_class, folder, kwargs)
    if entry is None:
        raise ValueError(_why_not(model_class, folder, kwargs))
    loaded = folders.load(model_class, folder, entry, config, _attach, rest)
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    _read_old_marks(model, folder)
    shard_gains_(model)  # of a model that is loaded with a tp_plan
    if getattr(model, "hf_quantizer", None) is not None:
        _hook_again(model)
    return loaded


def _read_config(
    folders: Any, model_class: Any, folder: str | Path | None, kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any] | None, dict[str, Any]]:
    """The plain configuration, the entry that describes the conversion, and the remaining arguments."""
    transformers = require("transformers", extra="language")
    rest = {key: value for key, value in kwargs.items() if key != "config"}
    given = kwargs.get("config")
    if isinstance(given, transformers.PreTrainedConfig):
        config, entry = folders.plain_config(given)
        if entry is None and folder is not None:
            _, entry = folders.read_config(folder, rest)
        return config, entry, rest
    source = folder if given is None else given
    if source is None:
        raise ValueError("config must be given where folder is None: nothing else says how the model is converted")
    content, entry = folders.read_config(source, rest)
    is_concrete = issubclass(model_class, transformers.PreTrainedModel)
    config_class = model_class.config_class if is_concrete else transformers.AutoConfig
    config, rest = folders.build_config(config_class, content, source if folder is None else folder, rest)
    return config, entry, rest


def _why_not(model_class: Any, folder: str | Path | None, kwargs: dict[str, Any]) -> str:
    """The error for a folder whose config.json has no entry: it depends on whether the weights have marks."""
    _, info = model_class.from_pretrained(folder, **{**kwargs, "output_loading_info": True})
    marked = sorted(key for key in info["unexpected_keys"] if key.endswith(_MARKER))
    if marked:
        return (
            f"{folder}: the weights mark {len(marked)} modules as preconditioned, {marked[0]!r} first, and config.json "
            "has no entry 'preconditioned_attention' that says with which options; build the plain model, call "
            "precondition_(model, PreconditionConfig(...)) as before the training, and load the weights with "
            "load_state_dict"
        )
    return (
        f"{folder} holds a plain model: its config.json has no 'preconditioned_attention'. Load it with "
        f"{model_class.__name__}.from_pretrained, and call precondition_(model)"
    )


def _attach(model: nn.Module, entry: dict[str, Any]) -> None:
    """Convert the modules that ``entry`` lists."""
    from .standalone.preconditioned_folder import find_modules, said

    options = {path: said(entry, name) for path, name in find_modules(model, entry).items()}
    for path, own in options.items():
        chosen = {other for other, others in options.items() if others == own}
        if path == min(chosen):
            config, _ = split_options(own["config"])
            # The entry lists its modules, of whatever kind.
            precondition_(model, config, include="all", filter_fn=_is_one_of(chosen), marker=own["marker"])
    if "attachments" not in entry:  # written while a mark was three integers
        for _, module in preconditioned_modules(model):
            _expect_old_mark(module.get_submodule("preconditioner"))


def _hook_again(model: nn.Module) -> None:
    """Hook the layers by which a quantizer has replaced those that were hooked when the model was built."""
    for _, module in preconditioned_modules(model):
        adapter, preconditioner = find_adapter(module), preconditioner_of(module)
        if adapter is not None and adapter.mechanism == "pre-hook":
            adapter.detach(module)
            adapter.attach(module, preconditioner)


def _is_one_of(chosen: set[str]) -> FilterFn:
    return lambda module, path: path in chosen


def _expect_old_mark(preconditioner: nn.Module) -> None:
    mark = preconditioner._buffers[_MARKER]
    if mark is not None:
        preconditioner.register_buffer(_MARKER, torch.zeros(3, dtype=torch.int64, device=mark.device))


def _read_old_marks(model: nn.Module, folder: str | Path | None) -> None:
    """Check marks of the old form, now that they are loaded, and replace them by marks of the present form."""
    for path, module in preconditioned_modules(model):
        preconditioner = preconditioner_of(module)
        mark = preconditioner._buffers[_MARKER]
        if mark is None or is_current(mark):
            continue
        if not mark.is_meta and (said := _read(mark, f"{folder}: {path}")) != preconditioner.says():
            raise ValueError(
                f"{folder}: config.json says {preconditioner.says()} of {path!r}, and its mark in the weights says "
                f"{said}; correct config.json"
            )
        preconditioner.renew_mark()


def _read(mark: torch.Tensor, where: str) -> Mark:
    try:
        return read_mark(mark)
    except ValueError as error:
        raise ValueError(f"{where}.preconditioner.{_MARKER}: {error}") from error
