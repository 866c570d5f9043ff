"""The entry in `config.json` that describes the conversion of a transformers model.

It is made from the model when that is saved, and not kept in the model's configuration, which other models may share
and plain models may inherit.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from torch import nn

from ...layers import Preconditioner
from ..adapter import Adapter, HeadShape
from ..attachment import preconditioned_modules, preconditioner_of
from ..mechanisms import PostHook, PreHook
from ..registry import find_adapter

# Parts of names that activation checkpointing, FSDP and torch.compile add, and that a new model does not have.
_WRAPPER = re.compile(r"(?<![^.])(_checkpoint_wrapped_module|_fsdp_wrapped_module|_orig_mod)\.")


def conversion_entry(model: nn.Module) -> dict[str, Any] | None:
    """The entry ``"preconditioned_attention"`` of ``config.json``; None for a model that was not converted.

    ``config`` and ``marker`` are those of all ``modules`` but the ``exceptions``, which have their own.
    ``attachments`` describe how modules are converted where this package is not installed, where that is possible.
    """
    found = preconditioned_modules(model)
    converted = {
        _WRAPPER.sub("", path): module for path, module in found if preconditioner_of(module).origin == "conversion"
    }
    if not converted:
        return None
    says = {path: _options(preconditioner_of(module)) for path, module in converted.items()}
    first = next(iter(says.values()))
    return {
        **first,
        "modules": list(converted),
        "exceptions": {path: said for path, said in says.items() if said != first},
        "attachments": _attachments(converted),
    }


def _options(preconditioner: Preconditioner) -> dict[str, Any]:
    return {"config": preconditioner.config.to_dict(), "marker": preconditioner.marked}


def _attachments(converted: dict[str, nn.Module]) -> list[dict[str, Any]]:
    """The attachments that can be described, each with the modules that share it."""
    grouped: list[dict[str, Any]] = []
    for path, module in converted.items():
        own = _attachment_of(module)
        if own is None:
            continue
        same = next((g for g in grouped if {k: v for k, v in g.items() if k != "modules"} == own), None)
        if same is None:
            grouped.append({**own, "modules": [path]})
        else:
            same["modules"].append(path)
    return grouped


def _attachment_of(module: nn.Module) -> dict[str, Any] | None:
    adapter = find_adapter(module)
    if adapter is None:
        return None
    shape, attach = adapter.shape(module), type(adapter).attach
    if adapter.mechanism == "attention interface":
        return _attachment(adapter, shape, [], None)
    if isinstance(adapter, PreHook) and attach in (PreHook.attach, PostHook.attach):
        targets = [] if isinstance(adapter, PostHook) else list(adapter.hook_targets(module))
        return _attachment(adapter, shape, targets, dataclasses.asdict(adapter.layout(module)))
    return None


def _attachment(
    adapter: Adapter, shape: HeadShape, targets: list[str], layout: dict[str, Any] | None
) -> dict[str, Any]:
    return {"form": adapter.mechanism, "num_heads": shape.num_heads, "points": targets, "layout": layout}
