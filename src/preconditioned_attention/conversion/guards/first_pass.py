"""A check, in the first pass with gradients, for attention that is not called although its parameters are used.

A converted module that is called is checked by its own hooks (`call_guard`). One that is not called may not be needed
in this pass (the encoder, while a decoder generates), or a fused layer reads its parameters and computes attention
without it. The autograd graph of the model's output distinguishes the two: it leads to every parameter that was used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ...layers import Preconditioner
from .call_guard import may_be_compiled
from .wrapped_models import check_gains_are_reduced


class FirstPassCheck:
    """A forward hook on a converted model that checks the first pass with gradients and then removes itself.

    Args:
        attentions: path and module of every converted attention inside the model.
    """

    def __init__(self, attentions: Sequence[tuple[str, nn.Module]]) -> None:
        self.attentions = tuple(attentions)

    def __call__(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Raise if ``output`` depends on all parameters of an attention that was never called."""
        if torch.compiler.is_compiling():
            return
        check_gains_are_reduced(_preconditioners(self.attentions))
        silent = [(path, module) for path, module in self.attentions if not _was_called(module)]
        results = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.requires_grad]
        if silent and not results:
            return
        if silent and not may_be_compiled(model):
            _refuse(_bypassed(model, silent, _reached(results)))
        _remove(model, lambda hook: hook is self)


def watch_first_pass(model: nn.Module, attentions: Sequence[tuple[str, nn.Module]]) -> None:
    """Register the check on ``model``."""
    if attentions:
        model.register_forward_hook(FirstPassCheck(attentions))


def unwatch_first_pass(model: nn.Module) -> None:
    """Remove the check from every part of ``model`` where it has not run yet."""
    for module in model.modules():
        _remove(module, lambda hook: isinstance(hook, FirstPassCheck))


def _preconditioners(attentions: Iterable[tuple[str, nn.Module]]) -> Iterator[Preconditioner]:
    found = (module._modules.get("preconditioner") for _, module in attentions)
    return (preconditioner for preconditioner in found if isinstance(preconditioner, Preconditioner))


def _remove(module: nn.Module, chosen: Callable[[object], bool]) -> None:
    for key in [key for key, hook in module._forward_hooks.items() if chosen(hook)]:
        del module._forward_hooks[key]


def _refuse(bypassed: list[str]) -> None:
    if bypassed:
        raise RuntimeError(
            f"the preconditioners of {', '.join(map(repr, bypassed))} were not called, and every parameter of these "
            "attentions took part in this forward pass: something reads them and bypasses the module (a fused layer, "
            "a functional, a direct call of module.forward). Let it call the module, or call restore_(model) and leave "
            "them out with filter_fn"
        )


def _was_called(module: nn.Module) -> bool:
    calls = getattr(module._modules.get("preconditioner"), "calls", None)
    return calls is None or calls.ever  # without a record, it has been restored since


def _bypassed(model: nn.Module, silent: Sequence[tuple[str, nn.Module]], reached: set[int]) -> list[str]:
    found = []
    for path, module in silent:
        own = _own_parameters(model, module)
        if own and own <= reached:
            found.append(path)
    return found


def _own_parameters(model: nn.Module, attention: nn.Module) -> set[int]:
    """The trainable parameters of ``attention`` that no other part of the model shares."""
    inside = set(attention.modules())
    elsewhere = {id(p) for part in model.modules() if part not in inside for p in part.parameters(recurse=False)}
    kept = {id(p) for p in attention.get_submodule("preconditioner").parameters()}
    return {id(p) for p in attention.parameters() if p.requires_grad} - elsewhere - kept


def _reached(results: Iterable[Tensor]) -> set[int]:
    """The leaves of the autograd graph of ``results``."""
    leaves = {id(result) for result in results if result.grad_fn is None}
    pending: list[Any] = [result.grad_fn for result in results if result.grad_fn is not None]
    seen: set[Any] = set(pending)
    while pending:
        node = pending.pop()
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        following = {parent for parent, _ in node.next_functions if parent is not None} - seen
        seen |= following
        pending.extend(following)
    return leaves
