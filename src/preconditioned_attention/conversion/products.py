"""The heads' outputs as attention computes them: products of weights with values, seen by a dispatch mode.

A dispatch mode sees the operators that run, whatever the Python above them looks like: `@`, `einsum`, `matmul` and
fused attention, in functions, in `autograd.Function`s, in compiled extensions that call back into PyTorch. What it
does not see is inside a kernel that PyTorch does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_aten = torch.ops.aten
_PRODUCTS = {_aten.bmm.default, _aten.mm.default, _aten.baddbmm.default}
_SOFTMAXES = {_aten._softmax.default, _aten._safe_softmax.default}
_FUSED = ("scaled_dot_product", "_flash_attention_forward", "_efficient_attention_forward")

Edit = Callable[[str, int, Tensor], Tensor]


@dataclass(frozen=True)
class Product:
    """One product inside an attention module.

    Args:
        out: its result, ``(..., M, K)``.
        of_softmax: whether a factor came from a softmax, as attention weights do, and as scores do not.
        fused: whether a fused operator computed it, whose rows lie along the last axis.
    """

    out: Tensor
    of_softmax: bool
    fused: bool


@contextmanager
def watching_products(sites: Mapping[str, nn.Module], edit: Edit | None = None) -> Iterator[dict[str, list[Product]]]:
    """Keep the products that are computed in each of ``sites`` (and in no site inside it), in order.

    Products with a parameter are projections, and left out.

    Args:
        sites: path to attention module.
        edit: ``edit(path, index, out)`` is asked for each product, and what it returns goes on in its place.
    """
    mode = _ProductMode(sites, edit)
    with ExitStack() as stack:
        for path, module in sites.items():
            enter, leave = _marks(mode, path)
            stack.callback(module.register_forward_pre_hook(enter, prepend=True).remove)
            stack.callback(module.register_forward_hook(leave, always_call=True).remove)
        stack.enter_context(mode)
        yield mode.products


def _marks(mode: _ProductMode, path: str) -> tuple[Callable[..., None], Callable[..., None]]:
    def enter(module: nn.Module, args: object) -> None:
        mode.inside.append(path)

    def leave(module: nn.Module, args: object, output: object) -> None:
        mode.leave()

    return enter, leave


class _ProductMode(TorchDispatchMode):
    def __init__(self, sites: Mapping[str, nn.Module], edit: Edit | None) -> None:
        super().__init__()
        self.inside: list[str] = []
        self.products: dict[str, list[Product]] = {path: [] for path in sites}
        self.edit = edit
        self.weights: dict[int, Tensor] = {}  # what came from a softmax, kept, so that no other takes its id
        parameters = (p for module in sites.values() for p in module.parameters())
        self.parameters = {p.untyped_storage().data_ptr() for p in parameters}

    def leave(self) -> None:
        self.inside.pop()
        if not self.inside:
            self.weights.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not self.inside:
            return out
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        of_softmax = any(id(tensor) in self.weights for tensor in tensors)
        if any(name in func.name() for name in _FUSED):
            first, *rest = out if isinstance(out, tuple) else (out,)
            first = self._product(Product(first, True, True))
            out = (first, *rest) if isinstance(out, tuple) else first
        elif func in _PRODUCTS and not any(self._is_a_parameter(tensor) for tensor in tensors):
            out = self._product(Product(out, of_softmax, False))
        if of_softmax or func in _SOFTMAXES:
            self.weights |= {id(value): value for value in tree_leaves(out) if isinstance(value, Tensor)}
        return out

    def _is_a_parameter(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self.parameters

    def _product(self, product: Product) -> Tensor:
        path = self.inside[-1]
        kept = self.products[path]
        out = product.out
        if self.edit is not None:
            out = self.edit(path, len(kept), out)
        kept.append(replace(product, out=product.out.detach().clone()))  # it may be changed in place later
        return out


def heads_of_attention(products: list[Product]) -> dict[int, Product]:
    """Those of ``products`` that may be heads' outputs, by their index: the ones that a softmax went into.

    Where there was no softmax (linear attention, other weights), all of them.
    """
    numbered = dict(enumerate(products))
    return {i: product for i, product in numbered.items() if product.of_softmax} or numbered
