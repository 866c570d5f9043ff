"""What keeps code that torch.compile made for a plain model from being taken for a converted one, and the reverse.

Compiled code is kept by class and re-used for another instance. It is held against what the trace has read of the
instance and, for speed, not against its hooks, so a converted model would run the code of a plain twin. What it is held
against is the type of the dicts that hold a module's parameters, buffers and children. PyTorch has built modules with
both of `dict` and `OrderedDict`; a converted attention has the other one than before.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from torch import nn

_DICTS = ("_parameters", "_buffers", "_modules")


def exchange_dict_types(module: nn.Module) -> None:
    """Hold what ``module`` holds in the other type of dict; a second call brings the first type back."""
    for name in _DICTS:
        held = vars(module)[name]
        vars(module)[name] = OrderedDict(held) if type(held) is dict else dict(held)


def mark_holders(model: nn.Module, paths: Iterable[str]) -> None:
    """Tell the holders of those attentions apart that hold nothing themselves, so that a trace reads none of theirs."""
    for holder in _holders(model, paths):
        vars(holder)["_modules"] = OrderedDict(holder._modules)


def unmark_holders(model: nn.Module, paths: Iterable[str]) -> None:
    """Undo :func:`mark_holders`."""
    for holder in _holders(model, paths):
        vars(holder)["_modules"] = dict(holder._modules)


def _holders(model: nn.Module, paths: Iterable[str]) -> list[nn.Module]:
    bare = [path for path in paths if path and _holds_nothing(model.get_submodule(path))]
    return [model.get_submodule(path.rpartition(".")[0]) for path in bare]


def _holds_nothing(module: nn.Module) -> bool:
    own = (*module._parameters.values(), *module._buffers.values(), *(module._modules.keys() - {"preconditioner"}))
    return not own
