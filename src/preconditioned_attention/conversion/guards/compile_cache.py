"""Separating the code that torch.compile caches for plain models from that for converted ones.

Dynamo caches compiled code per code object and guards it by what the trace has read of the module. Hooks are not
guarded, for speed, so a converted model could run code that was compiled for a plain model of the same class. Guarded
is the type of the dicts that hold a module's parameters, buffers and children. PyTorch has built modules with both
`dict` and `OrderedDict`, so a converted attention is given the type that it did not have.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from torch import nn

_DICTS = ("_parameters", "_buffers", "_modules")


def exchange_dict_types(module: nn.Module) -> None:
    """Change the type of the dicts of ``module`` to the other of the two; a second call changes it back."""
    for name in _DICTS:
        held = vars(module)[name]
        vars(module)[name] = OrderedDict(held) if type(held) is dict else dict(held)


def mark_holders(model: nn.Module, paths: Iterable[str]) -> None:
    """Change the dict of the parents of those attentions that hold nothing themselves, which a trace does not read."""
    for holder in _holders(model, paths):
        vars(holder)["_modules"] = OrderedDict(holder._modules)


def unmark_holders(model: nn.Module, paths: Iterable[str]) -> None:
    """Undo :func:`mark_holders`."""
    for holder in _holders(model, paths):
        vars(holder)["_modules"] = dict(holder._modules)


def _holders(model: nn.Module, paths: Iterable[str]) -> list[nn.Module]:
    bare = [path for path in paths if path and _is_empty(model.get_submodule(path))]
    return [model.get_submodule(path.rpartition(".")[0]) for path in bare]


def _is_empty(module: nn.Module) -> bool:
    own = (*module._parameters.values(), *module._buffers.values(), *(module._modules.keys() - {"preconditioner"}))
    return not own
