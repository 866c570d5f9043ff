"""Recording the matrix products inside attention modules with a dispatch mode.

A dispatch mode sees the operators of `@`, `einsum`, `matmul` and fused attention, in functions and in
`autograd.Function`s, but not inside kernels that are no PyTorch operators. `softmax_flow` finds those products that
have attention weights as a factor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..detection.softmax_flow import SoftmaxFlow

_PRODUCTS = {"bmm", "mm", "baddbmm"}
_FUSED = ("scaled_dot_product", "_flash_attention_forward", "_efficient_attention_forward")

Edit = Callable[[str, int, Tensor], Tensor]


@dataclass(frozen=True)
class Product:
    """One product inside an attention module.

    Args:
        out: its result.
        of_weights: whether the result of a softmax is a factor.
        fused: whether a fused operator computed it, whose rows lie along the last axis.
    """

    out: Tensor
    of_weights: bool
    fused: bool


@contextmanager
def watch_products(sites: Mapping[str, nn.Module], edit: Edit | None = None) -> Iterator[dict[str, list[Product]]]:
    """Record the products that are computed in each of ``sites`` (and in no site inside it), in order.

    Products with a parameter are projections and not recorded.

    Args:
        sites: path to attention module.
        edit: called as ``edit(path, index, out)`` for each product; its result replaces the product.
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
        mode.inside.pop()

    return enter, leave


class _ProductMode(TorchDispatchMode):
    def __init__(self, sites: Mapping[str, nn.Module], edit: Edit | None) -> None:
        super().__init__()
        self.inside: list[str] = []
        self.products: dict[str, list[Product]] = {path: [] for path in sites}
        self.edit = edit
        tensors = [t for module in sites.values() for t in (*module.parameters(), *module.buffers())]
        self.flow = SoftmaxFlow(tensors, lambda: ())
        self.parameters = {tensor.untyped_storage().data_ptr() for tensor in tensors}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._schema.name.partition("::")[2] if hasattr(func, "_schema") else func.__name__
        plain = name if name.startswith("_") else name.rstrip("_")
        reached = self.flow.follow(plain, args, kwargs, out, writes=plain != name)
        if not self.inside:
            return out
        if any(fused in name for fused in _FUSED):
            heads, *rest = out if isinstance(out, tuple) else (out,)
            heads = self._product(Product(heads, True, True))
            return (heads, *rest) if isinstance(out, tuple) else heads
        if reached or (name in _PRODUCTS and not self._is_a_projection(args)):
            out = self._product(Product(out, reached is not None, False))
        return out

    def _is_a_projection(self, args: tuple[Any, ...]) -> bool:
        tensors = [value for value in tree_leaves(args) if isinstance(value, Tensor)]
        return any(tensor.untyped_storage().data_ptr() in self.parameters for tensor in tensors)

    def _product(self, product: Product) -> Tensor:
        path = self.inside[-1]
        kept, out = self.products[path], product.out
        if self.edit is not None:
            out = self.edit(path, len(kept), out)
        kept.append(replace(product, out=product.out.detach().clone()))  # it may be changed in place later
        return out


def heads_of_attention(products: list[Product]) -> tuple[dict[int, Product], bool]:
    """Those of ``products`` that may be heads' outputs, by their index, and whether that is certain.

    If no product has a softmax as a factor (linear attention, an unknown kernel), all of them may be.
    """
    numbered = dict(enumerate(products))
    reached = {i: product for i, product in numbered.items() if product.of_weights}
    return reached or numbered, bool(reached)
