"""Following the results of softmaxes through the operators of a run, to find weighted sums over tokens.

Every tensor that an ATen operator returns gets marks, which depend on those of its inputs and on the operator. What
counts as attention is a softmax (an operator, or exponentials divided by their sum, before or after the product) whose
result, through elementwise operators, views, casts and mixing of heads, reaches

* a matrix product with something else, or
* a multiplication by something else, and then a sum over the axis of the softmax, or over neighbors by a scatter.

Two products do not count. *Tables*: values that are parameters, buffers or constants of the module do not come from
tokens (a projection of probabilities, a codebook, the bins of an expectation). *Mixtures*: where every value is used
with one row of weights only and the softmax ran over the outputs of a linear layer or a convolution, the weights
select branches (routers of experts, selective kernels) and not tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Literal

from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from .axes import Axes, follow_axes, summed_axes

# "features": the outputs of a linear layer or convolution; "weights": a softmax's result; "weighted": times values, not
# summed yet; "exponential", "total" and "inverse": e^x, its sum and one over that; "mixed": a product of e^x with
# values; "log total" and "log weights": the same in logarithms.
Kind = Literal[
    "features", "weights", "weighted", "exponential", "total", "inverse", "mixed", "log total", "log weights"
]

_SOFTMAX = {"_softmax", "_safe_softmax", "softmax", "_masked_softmax"}
_LOG_SOFTMAX = {"_log_softmax", "log_softmax"}
_PRODUCTS = {"mm": 0, "bmm": 0, "mv": 0, "dot": 0, "matmul": 0, "addmm": 1, "baddbmm": 1, "addbmm": 1, "addmv": 1}
_SUMS = {"sum", "mean", "nansum"}
_SCATTERED_SUMS = {"scatter_add", "index_add", "scatter_reduce", "index_reduce", "index_put"}
_CONVOLUTIONS = {"convolution", "_convolution", "mkldnn_convolution", "cudnn_convolution", "conv2d", "conv1d"}
_ENDS = {"native_group_norm", "embedding", "native_batch_norm", "_native_batch_norm_legit"}
_ENDS |= {"_batch_norm_with_update", "cudnn_batch_norm", "_fused_rms_norm"}
_CONSTANTS = {"lift_fresh", "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like"}
_CONSTANTS |= {"new_zeros", "new_ones", "new_full", "new_empty"}
_NO_TABLE = {*_PRODUCTS, *_CONVOLUTIONS, "embedding"}  # what they return was computed, also from tables


@dataclass(frozen=True)
class Mark:
    """What is known of a tensor.

    Args:
        kind: see `Kind`.
        axes: of features and weights: which they are. Of exponentials: those that are features. Of totals: those that
            were summed.
        key: the exponential that it belongs to.
        where: the modules that were running at the softmax, outermost first.
        over_features: whether the softmax ran over features.
    """

    kind: Kind
    axes: Axes = None
    key: int = 0
    where: tuple[str, ...] = ()
    over_features: bool = False


@dataclass(frozen=True)
class Reached:
    """A product that the result of a softmax has reached: the modules running at the softmax, and the operator."""

    where: tuple[str, ...]
    operator: str


class SoftmaxFlow:
    """The marks of all tensors of one run.

    Args:
        tables: the parameters and buffers of the model.
        where: a function that returns the running modules, outermost first.
    """

    def __init__(self, tables: Iterable[Tensor], where: Callable[[], tuple[str, ...]]) -> None:
        self._where = where
        self._marks = WeakTensorKeyDictionary()
        self._tables = WeakTensorKeyDictionary()
        self._keys = count(1)
        for table in tables:
            self._tables[table] = True

    def follow(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, *, writes: bool = False
    ) -> Reached | None:
        """Mark ``out``, which the operator ``name`` returned; return a :class:`Reached` if it is attention's product.

        Args:
            name: of the operator, without the underscore of the in-place variants.
            args, kwargs: its arguments.
            out: what it returned.
            writes: whether it wrote to an argument, which may be a view.
        """
        call = _Call(name, args, kwargs, [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)])
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        is_table = name not in _NO_TABLE and (name in _CONSTANTS or all(map(self._is_table, call.tensors)))
        reached = None
        for result in results:
            marks, found = ([], None) if is_table else self._made(call, result)
            reached = reached or found
            self._set(result, marks, is_table)
            if writes and result._base is not None:
                self._written(result._base, result, marks, is_table)
        return reached

    def _set(self, result: Tensor, marks: list[Mark], is_table: bool) -> None:
        self._marks[result] = marks if result.is_floating_point() else []
        if is_table:
            self._tables[result] = True
        else:
            self._tables.pop(result, None)

    def _written(self, base: Tensor, view: Tensor, marks: list[Mark], is_table: bool) -> None:
        """A part of ``base``, of which ``view`` is a view, was overwritten by a tensor with ``marks``."""
        if not is_table:
            self._tables.pop(base, None)
        if base.stride() != view.stride():
            marks = [replace(mark, axes=None) for mark in marks]
        self._marks[base] = list(dict.fromkeys([*self.of(base), *marks]))

    def of(self, tensor: Tensor) -> list[Mark]:
        """The marks of ``tensor``."""
        marks: list[Mark] = self._marks.get(tensor, [])
        return marks

    def _is_table(self, tensor: Tensor) -> bool:
        return tensor in self._tables or (tensor._base is not None and tensor._base in self._tables)

    def _made(self, call: _Call, out: Tensor) -> tuple[list[Mark], Reached | None]:
        name = call.name
        if name in _ENDS:
            return [], None
        if name == "native_layer_norm":
            return self._through_norm(call, out), None
        if name in _CONVOLUTIONS:
            return [Mark("features", frozenset({1 - out.dim()})), *self._through_convolution(call, out)], None
        if name in _SOFTMAX or name in _LOG_SOFTMAX:
            return [self._softmax(call, out)], None
        if name == "exp":
            return self._exponential(call.tensors[0]), None
        if name == "logsumexp":
            return [Mark("log total", where=self._where())], None
        if name in _PRODUCTS:
            return self._product(call, out)
        if name in ("mul", "div") and len(call.tensors) == 2:
            return self._scaled(call, out)
        if name in _SUMS or name in _SCATTERED_SUMS:
            return self._summed(call, out)
        return self._carried(call, out), None

    def _carried(self, call: _Call, out: Tensor, *, leave: frozenset[Kind] = frozenset()) -> list[Mark]:
        """The marks of all inputs, with their axes in ``out``."""
        marks = {}
        for tensor in call.tensors:
            for mark in self.of(tensor):
                if mark.kind not in leave:
                    marks[_followed(mark, call, tensor, out)] = True
        return [mark for mark in marks if mark.kind != "features" or mark.axes]

    def _features(self, tensor: Tensor) -> frozenset[int]:
        return frozenset(axis for mark in self.of(tensor) if mark.kind == "features" for axis in mark.axes or ())

    def _softmax(self, call: _Call, out: Tensor) -> Mark:
        source = call.tensors[0]
        dim = call.kwargs.get("dim", call.args[1] if len(call.args) > 1 else -1)
        axes = frozenset({dim if not isinstance(dim, int) or dim < 0 else dim - max(source.dim(), 1)})
        kind: Kind = "weights" if call.name in _SOFTMAX else "log weights"
        return Mark(kind, axes, where=self._where(), over_features=bool(axes & self._features(source)))

    def _exponential(self, source: Tensor) -> list[Mark]:
        logs = [mark for mark in self.of(source) if mark.kind == "log weights"]
        if logs:
            return [replace(mark, kind="weights") for mark in logs]
        return [Mark("exponential", self._features(source), next(self._keys), self._where())]

    def _product(self, call: _Call, out: Tensor) -> tuple[list[Mark], Reached | None]:
        left, right = call.tensors[_PRODUCTS[call.name] :][:2]
        sides = ((left, right, -1), (right, left, -2 if right.dim() > 1 else -1))
        marks: list[Mark] = []
        for side, other, axis in sides:
            if self._is_table(other):
                marks += self._through_table(side, axis, out)
            else:
                marks += self._through_product(side, other)
        marks += [Mark("features", frozenset({axis})) for axis in self._from_tables(left, right, out)]
        reached = [found for side, other, _ in sides for found in self._weighing(call, side, other)]
        return list(dict.fromkeys(marks)), reached[0] if reached else None

    def _from_tables(self, left: Tensor, right: Tensor, out: Tensor) -> list[int]:
        """The axes of a product that are the outputs of a linear layer."""
        tables = ((left, -2), (right, -1))
        return [axis for table, axis in tables if self._is_table(table) and table.dim() > 1 and out.dim() >= -axis]

    def _through_table(self, side: Tensor, axis: int, out: Tensor) -> list[Mark]:
        """The marks after a linear layer: of weights whose own axis it does not sum over (a mixing of heads)."""
        if out.dim() != side.dim():
            return []
        return [
            mark
            for mark in self.of(side)
            if mark.kind in ("weights", "weighted", "features") and mark.axes and axis not in mark.axes
        ]

    def _through_norm(self, call: _Call, out: Tensor) -> list[Mark]:
        """The marks of weights that are normalized over another axis than their own, such as the heads."""
        over = frozenset(range(-len(call.args[1]), 0))
        return [m for m in self.of(call.tensors[0]) if m.kind == "weights" and m.axes and not m.axes & over]

    def _through_convolution(self, call: _Call, out: Tensor) -> list[Mark]:
        """The marks of weights whose heads are mixed by a convolution with a kernel of size 1."""
        source, kernel = call.tensors[:2]
        pointwise = kernel.shape[2:].numel() == 1 and out.dim() == source.dim()
        return [
            m for m in self.of(source) if pointwise and m.kind == "weights" and m.axes and 1 - out.dim() not in m.axes
        ]

    def _through_product(self, side: Tensor, other: Tensor) -> list[Mark]:
        """The marks after a product with no table: of exponentials and their sums, and of weights times weights."""
        marks = [mark for mark in self.of(side) if mark.kind in ("total", "mixed")]
        marks += [replace(mark, kind="mixed", axes=None) for mark in self.of(side) if mark.kind == "exponential"]
        if self._is_weights(other):
            marks += [replace(mark, axes=None) for mark in self.of(side) if mark.kind == "weights"]
        return marks

    def _is_weights(self, tensor: Tensor) -> bool:
        return any(mark.kind in ("weights", "log weights") for mark in self.of(tensor))

    def _weighing(self, call: _Call, side: Tensor, other: Tensor) -> list[Reached]:
        """The attention that a product of ``side`` with ``other`` is."""
        if self._is_table(other) or self._is_weights(other):
            return []
        rows = side.shape[-2 if side is call.tensors[_PRODUCTS[call.name]] else -1] if side.dim() > 1 else 1
        weights = (mark for mark in self.of(side) if mark.kind == "weights")
        return [Reached(mark.where, call.name) for mark in weights if rows > 1 or not mark.over_features]

    def _scaled(self, call: _Call, out: Tensor) -> tuple[list[Mark], Reached | None]:
        """A multiplication or a division of tensors."""
        if call.name == "mul":
            normalized = _pairs(self.of(call.tensors[0]), self.of(call.tensors[1]), "inverse")
            normalized += _pairs(self.of(call.tensors[1]), self.of(call.tensors[0]), "inverse")
        else:
            normalized = _pairs(self.of(call.tensors[0]), self.of(call.tensors[1]), "total")
        divided = [mark for mark, _ in normalized if mark.kind == "mixed"]
        if divided:
            return [], Reached(divided[0].where, "a product with the exponentials and a division by their sum")
        made = [
            Mark("weights", total.axes, where=mark.where, over_features=total.over_features)
            for mark, total in normalized
        ]
        if made:
            return made, None
        return [*self._carried(call, out), *self._weighted(call, out)], None

    def _weighted(self, call: _Call, out: Tensor) -> list[Mark]:
        """The marks of weights that are multiplied by something that is neither weights nor a table."""
        pairs = (call.tensors, call.tensors[::-1]) if call.name == "mul" else ()
        return [
            replace(_followed(mark, call, tensor, out), kind="weighted")
            for tensor, other in pairs
            if not (self._is_table(other) or self._is_weights(other))
            for mark in self.of(tensor)
            if mark.kind == "weights"
        ]

    def _summed(self, call: _Call, out: Tensor) -> tuple[list[Mark], Reached | None]:
        scattered = call.name in _SCATTERED_SUMS
        source = call.tensors[-1] if scattered else call.tensors[0]
        axes = _scattered_axes(call, source) if scattered else summed_axes(call.args, call.kwargs, source)
        marks, reached = self._carried(call, out, leave=frozenset({"weighted", "exponential", "weights"})), None
        for mark in self.of(source):
            if mark.kind == "exponential":
                over = bool(axes and mark.axes and axes & mark.axes)
                marks.append(Mark("total", axes, mark.key, mark.where, over_features=over))
            elif mark.kind in ("weighted", "weights"):
                if axes is None or mark.axes is None or axes & mark.axes:
                    if mark.kind == "weighted" and not mark.over_features:
                        reached = Reached(mark.where, f"a multiplication and {call.name}")
                else:
                    marks.append(_followed(mark, call, source, out))
        return marks, reached


@dataclass(frozen=True)
class _Call:
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tensors: list[Tensor]


def _followed(mark: Mark, call: _Call, source: Tensor, out: Tensor) -> Mark:
    if mark.kind in ("total", "inverse"):
        return replace(mark, kind="inverse") if call.name == "reciprocal" else mark
    if mark.kind == "log total":
        return replace(mark, kind="log weights") if call.name == "sub" and source is call.tensors[-1] else mark
    axes = follow_axes(call.name, call.args, source, mark.axes, out)
    return replace(mark, axes=axes or frozenset() if mark.kind == "exponential" else axes)


def _scattered_axes(call: _Call, source: Tensor) -> Axes:
    """The axis along which a scattered sum takes its values."""
    dim = call.args[1] if len(call.args) > 1 else None
    return frozenset({dim if dim < 0 else dim - source.dim()}) if isinstance(dim, int) else None


def _pairs(marks: list[Mark], others: list[Mark], kind: Kind) -> list[tuple[Mark, Mark]]:
    """The exponentials among ``marks``, multiplied by values or not, each with its own sum among ``others``."""
    own = [mark for mark in marks if mark.kind in ("exponential", "mixed")]
    return [(mark, total) for mark in own for total in others if total.kind == kind and total.key == mark.key]
