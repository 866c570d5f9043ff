"""Refusing models that are compiled, scripted or traced, which a change in place would not reach."""

from __future__ import annotations

import torch
from torch import nn

from ...layers import Preconditioner
from .instance_forward import instance_forwards, is_compiled


def check_not_compiled(model: nn.Module) -> None:
    """Raise if a part of ``model`` is compiled: its compiled code would stay as it is.

    Raises:
        ValueError: a part is compiled, a TorchScript module, or a graph with attention in it.
    """
    for path, module in model.named_modules():
        reason = _reason(module)
        if reason is not None:
            where = f"its submodule {path!r}" if path else "it"
            raise ValueError(f"the model cannot be changed in place: {where} is {reason}")


def _reason(module: nn.Module) -> str | None:
    if isinstance(module, torch.jit.ScriptModule):
        return "a TorchScript module; convert, then torch.jit.trace"
    if isinstance(getattr(module, "graph", None), torch.fx.Graph) and _has_attention_nodes(module):
        return (
            "a graph, of torch.fx or torch.export, in which attention is a node and no module; call precondition_ or "
            "restore_ first, then trace or export"
        )
    if _is_compiled(module):
        return (
            "compiled, and compiled code does not see the change; call precondition_ or restore_ first, then "
            "torch.compile"
        )
    return None


def _has_attention_nodes(graph: nn.Module) -> bool:
    """Whether nodes of ``graph`` compute attention, or call a preconditioner without its attention module."""
    modules = dict(graph.named_modules())
    return any(
        "scaled_dot_product" in getattr(node.target, "__name__", str(node.target))
        or isinstance(modules.get(node.target), Preconditioner)
        for node in graph.graph.nodes  # type: ignore[union-attr]
    )


def _is_compiled(module: nn.Module) -> bool:
    whole = hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
    return whole or any(is_compiled(forward) for forward in instance_forwards(module))
