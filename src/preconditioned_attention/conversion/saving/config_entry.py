"""What the folder of a converted transformers model says of the conversion: read off the model when it is saved.

Not written into the model's configuration, which other models may share and plain models may inherit.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from torch import nn

from ...layers import Preconditioner
from ..attachment import preconditioned_modules, preconditioner_of
from ..mechanisms import PostHook, PreHook
from ..registry import Adapter, HeadShape, find_adapter

# What activation checkpointing, FSDP and torch.compile put into names, and no state dict or fresh model has.
_WRAPPER = re.compile(r"(?<![^.])(_checkpoint_wrapped_module|_fsdp_wrapped_module|_orig_mod)\.")


def conversion_entry(model: nn.Module) -> dict[str, Any] | None:
    """The entry ``"preconditioned_attention"`` of ``config.json``; None for a model that was not converted.

    ``config`` and ``marker`` hold for all ``modules`` but the ``exceptions``, which have their own. ``attachments`` say
    how the modules can be converted where this package is not installed, for those where that can be said.
    """
    found = preconditioned_modules(model)
    converted = {
        _WRAPPER.sub("", path): module for path, module in found if preconditioner_of(module).origin == "conversion"
    }
    if not converted:
        return None
    says = {path: _said(preconditioner_of(module)) for path, module in converted.items()}
    first = next(iter(says.values()))
    return {
        **first,
        "modules": list(converted),
        "exceptions": {path: said for path, said in says.items() if said != first},
        "attachments": _attachments(converted),
    }


def _said(preconditioner: Preconditioner) -> dict[str, Any]:
    return {"config": preconditioner.config.to_dict(), "marker": preconditioner.marked}


def _attachments(converted: dict[str, nn.Module]) -> list[dict[str, Any]]:
    """Every way in that can be described, with the modules that share it."""
    grouped: list[dict[str, Any]] = []
    for path, module in converted.items():
        way = _way_in(module)
        if way is None:
            continue
        same = next((g for g in grouped if {k: v for k, v in g.items() if k != "modules"} == way), None)
        if same is None:
            grouped.append({**way, "modules": [path]})
        else:
            same["modules"].append(path)
    return grouped


def _way_in(module: nn.Module) -> dict[str, Any] | None:
    adapter = find_adapter(module)
    if adapter is None:
        return None
    shape, attach = adapter.shape(module), type(adapter).attach
    if adapter.mechanism == "attention interface":
        return _way(adapter, shape, [], None)
    if isinstance(adapter, PreHook) and attach in (PreHook.attach, PostHook.attach):
        targets = [] if isinstance(adapter, PostHook) else list(adapter.hook_targets(module))
        return _way(adapter, shape, targets, dataclasses.asdict(adapter.layout(module)))
    return None


def _way(adapter: Adapter, shape: HeadShape, targets: list[str], layout: dict[str, Any] | None) -> dict[str, Any]:
    return {"form": adapter.mechanism, "num_heads": shape.num_heads, "points": targets, "layout": layout}
