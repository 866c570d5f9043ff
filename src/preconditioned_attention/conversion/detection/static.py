"""Static detection: which modules compute attention, by the code of their classes.

It decides only what a report lists as unknown. A class counts if the code that its forward runs names an attention
function, or a softmax and a matrix product; or if it is named after attention and has a product or query, key and value
projections. The code that a forward runs: its methods and the functions that they name, outside PyTorch and the
standard library. Names are resolved to objects (`named_objects`): aliases, entries of tables and decorated functions
lead to the function itself. Names that only a run could resolve, such as methods of tensors, count by their spelling.
"""

from __future__ import annotations

import dis
import functools
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from types import CodeType, FunctionType

import torch
from torch import nn

from .handwritten_softmax import has_handwritten_softmax
from .named_objects import named_objects, nested_code, underlying_callables

__all__ = ["computes_attention", "named_after_attention", "nested_code"]

_ATTENTION_CALLS = re.compile(
    r"scaled_dot_product_attention|multi_head_attention_forward|flash_attn_\w+|memory_efficient_attention|flex_attention"
    r"|dispatch_attention_fn|shifted_window_attention\w*|(ms|multi_?scale)_deform(able)?_att(entio)?n\w*|natten\w+"
    r"|_scaled_dot_product_\w+|_native_multi_head_attention|sageattn\w*|varlen_attn"
    r"|memory_efficient_attention_forward\w*|na[123]d(_qk|_av)?"
)
_SOFTMAX = re.compile(r"(?!log_)(\w+_)?X?[sS]oftmax(2d)?")
_PRODUCTS = {"matmul", "bmm", "baddbmm", "einsum"}
_SCATTERS = re.compile(r"(scatter|segment)(_(add|sum|reduce|csr))?_?|index_add_?")
_AGGREGATIONS = re.compile(_SCATTERS.pattern + r"|propagate|edge_updater|aggregate|reduce|update_all|global_add_pool")
_WEIGHTS_NAMES = re.compile(r"(\w+_)?(attention|attn|att)(_(weights?|scores?|probs?))?")
_PROJECTIONS = {
    *("qkv", "qkv_proj", "in_proj", "in_proj_weight", "c_attn", "Wqkv", "query_key_value", "kv", "qk"),
    *("q", "q_proj", "query", "to_q", "wq", "to_qkv", "q_lin", "query_proj", "q_linear"),
}
_CALLED_BY = {"propagate": ("message", "aggregate", "update"), "edge_updater": ("edge_update",)}  # of torch_geometric
_NOT_FOLLOWED = {"torch", "numpy", "einops", "einx", "opt_einsum", *sys.stdlib_module_names}


def computes_attention(module: nn.Module) -> bool:
    """Whether ``module`` itself, and not a child of it, seems to compute attention."""
    cls: type = type(module)
    if _code_computes_attention(cls):
        return True
    if _own_values_compute_attention(module):
        return True
    own_names = {name for name, _ in module.named_children()} | {
        name for name, _ in module.named_parameters(recurse=False)
    }
    return _has_the_name(cls) and bool(own_names & _PROJECTIONS)


def named_after_attention(cls: type[nn.Module]) -> bool:
    """Whether ``cls`` is named after attention and its constructor names projections of queries or keys."""
    makers = (inspect.unwrap(vars(base)["__init__"]) for base in cls.__mro__ if "__init__" in vars(base))
    names = {name for maker in makers if isinstance(maker, FunctionType) for name in maker.__code__.co_names}
    return _has_the_name(cls) and bool(names & _PROJECTIONS)


def _has_the_name(cls: type) -> bool:
    return re.search(r"attention|attn", cls.__name__, re.IGNORECASE) is not None


@functools.cache
def _code_computes_attention(cls: type) -> bool:
    signs = _signs_of_forward(cls)
    if signs.attention or (_has_the_name(cls) and signs.product):
        return True
    return (signs | _signs_of_kept(cls)).attention


@dataclass(frozen=True)
class _Signs:
    """What was found in some code; the union of two is what was found in either."""

    attention_call: bool = False
    softmax: bool = False
    scattered_softmax: bool = False  # over the neighbors of every node, say
    product: bool = False
    aggregation: bool = False
    weighted_sum: bool = False  # a softmax, a multiplication and a sum, in a function with names of attention

    def __or__(self, other: _Signs) -> _Signs:
        return _Signs(*(mine or its for mine, its in zip(astuple(self), astuple(other), strict=True)))

    @property
    def attention(self) -> bool:
        """Whether these signs mean attention."""
        return (
            self.attention_call
            or self.weighted_sum
            or (self.softmax and self.product)
            or (self.scattered_softmax and (self.product or self.aggregation))
        )


@functools.cache
def _signs_of_forward(cls: type) -> _Signs:
    return _all_signs(_functions_run_by_forward(cls))


@functools.cache
def _signs_of_kept(cls: type) -> _Signs:
    """A softmax module that the constructor makes, and attention functions that it or the class stores."""
    kept = [value for maker in _methods(cls, "__init__", own=False) for value in _objects_in(maker)]
    for base in _own_bases(cls):
        kept += (
            value for name in _names_used(cls) & set(vars(base)) for value in underlying_callables(vars(base)[name])
        )
    softmax = any(value in (nn.Softmax, nn.Softmax2d) for value in kept if isinstance(value, type))
    return _Signs(softmax=softmax, attention_call=any(map(_is_attention_function, kept)))


def _is_attention_function(value: object) -> bool:
    if isinstance(value, type):
        return False
    if isinstance(value, FunctionType) and _followed(value) and _all_signs(_functions_run([value], None)).attention:
        return True
    return _sign_of(value).attention_call


def _own_values_compute_attention(module: nn.Module) -> bool:
    """Whether attributes of this module show it: a function that it stores, or a softmax among its children."""
    cls: type = type(module)
    signs, used = _signs_of_forward(cls), _names_used(cls)
    for name, value in vars(module).items():
        if name in used and not isinstance(value, torch.Tensor | str | int | float):
            for kept in underlying_callables(value):
                if _is_attention_function(kept) or _called_computes_attention(kept):
                    return True
    return signs.product and any(isinstance(child, nn.Softmax | nn.Softmax2d) for child in _children(module))


def _called_computes_attention(value: object) -> bool:
    cls: type = type(value)
    return _call_computes_attention(cls)


@functools.cache
def _call_computes_attention(cls: type) -> bool:
    """Whether objects of ``cls``, which is no module class, compute attention when they are called."""
    if issubclass(cls, nn.Module | type | FunctionType) or _root(cls.__module__) in _NOT_FOLLOWED:
        return False
    return _all_signs(_functions_run(list(_methods(cls, "__call__", own=False)), cls)).attention


def _children(module: nn.Module) -> Iterator[nn.Module]:
    """The children of ``module``, including those in containers."""
    for child in module.children():
        yield child
        if isinstance(child, nn.Sequential | nn.ModuleList | nn.ModuleDict):
            yield from _children(child)


def _all_signs(functions: Iterable[FunctionType]) -> _Signs:
    return functools.reduce(_Signs.__or__, map(_signs_in, functions), _Signs())


@functools.cache
def _signs_in(function: FunctionType) -> _Signs:
    """The signs in the code of one function."""
    signs = _Signs()
    for code in nested_code(function.__code__):
        signs |= _signs_in_code(code)
    for value in _objects_in(function):
        signs |= _sign_of(value)
    if has_handwritten_softmax(function):
        signs |= _Signs(softmax=True, scattered_softmax=any(map(_SCATTERS.fullmatch, _names_in(function))))
    if signs.softmax and _has_attention_names(function):
        signs |= _Signs(weighted_sum=any(map(_multiplies_and_sums, nested_code(function.__code__))))
    return signs


def _signs_in_code(code: CodeType) -> _Signs:
    names = set(code.co_names)
    return _Signs(
        attention_call=any(map(_ATTENTION_CALLS.fullmatch, names)),
        softmax=any(map(_SOFTMAX.fullmatch, names)),
        product="@" in _operators(code) or bool(names & _PRODUCTS),
        aggregation=any(map(_AGGREGATIONS.fullmatch, names)),
    )


def _sign_of(value: object) -> _Signs:
    """The signs of an object, whatever name it is used by."""
    if isinstance(value, torch.jit.ScriptFunction):
        return _signs_of_graph(str(value.inlined_graph))
    name = getattr(value, "__name__", "") if callable(value) else ""
    if not isinstance(name, str):
        return _Signs()
    return _Signs(
        attention_call=_ATTENTION_CALLS.fullmatch(name) is not None,
        softmax=_SOFTMAX.fullmatch(name) is not None,
        product=name in _PRODUCTS,
    )


def _signs_of_graph(graph: str) -> _Signs:
    called = set(re.findall(r"aten::(\w+)", graph))
    return _Signs(
        attention_call=any(map(_ATTENTION_CALLS.fullmatch, called)),
        softmax="softmax" in called,
        product=bool(called & _PRODUCTS),
    )


def _multiplies_and_sums(code: CodeType) -> bool:
    return bool(_operators(code) & {"*", "*="} or "mul" in code.co_names) and "sum" in code.co_names


def _has_attention_names(function: FunctionType) -> bool:
    code = function.__code__
    if re.search(r"atten|attn", function.__qualname__, re.IGNORECASE):
        return True
    return any(map(_WEIGHTS_NAMES.fullmatch, (*code.co_names, *code.co_varnames)))


def _operators(code: CodeType) -> set[str]:
    return {instruction.argrepr for instruction in dis.get_instructions(code) if instruction.opname == "BINARY_OP"}


def _code_run_by_forward(cls: type) -> Iterator[CodeType]:
    """The code of the functions that a forward runs, with what is nested in it."""
    for function in _functions_run_by_forward(cls):
        yield from nested_code(function.__code__)


def _functions_run_by_forward(cls: type) -> Iterator[FunctionType]:
    return _functions_run(list(_methods(cls, "forward")), cls)


def _functions_run(pending: list[FunctionType], cls: type | None) -> Iterator[FunctionType]:
    """The functions in ``pending`` and all methods of ``cls`` and functions that they name, directly or not.

    Methods that a subclass overrides are included: it may call them by `super()`.
    """
    seen: set[FunctionType] = set()
    while pending:
        function = pending.pop()
        if function in seen:
            continue
        seen.add(function)
        yield function
        pending += filter(_followed, (value for value in _objects_in(function) if isinstance(value, FunctionType)))
        if cls is not None:
            for name in _names_in(function):
                pending += _methods(cls, name)


@functools.cache
def _names_used(cls: type) -> frozenset[str]:
    """The names in the code that a forward runs."""
    return frozenset({"forward"}.union(*(code.co_names for code in _code_run_by_forward(cls))))


def _names_in(function: FunctionType) -> set[str]:
    names = {name for code in nested_code(function.__code__) for name in code.co_names}
    return names.union(*(_CALLED_BY[name] for name in names & set(_CALLED_BY)))


@functools.cache
def _objects_in(function: FunctionType) -> tuple[object, ...]:
    return tuple(value for named in named_objects(function) for value in underlying_callables(named))


def _methods(cls: type, name: str, *, own: bool = True) -> Iterator[FunctionType]:
    """Every definition of the method ``name`` in ``cls`` and its bases below `nn.Module`."""
    if name == "forward" or not (own and hasattr(nn.Module, name)):
        for base in _own_bases(cls):
            for method in underlying_callables(vars(base).get(name)):
                if isinstance(method, FunctionType):
                    yield method


def _own_bases(cls: type) -> tuple[type, ...]:
    """``cls`` and its bases as far as `nn.Module` or `object`."""
    return cls.__mro__[: cls.__mro__.index(nn.Module if nn.Module in cls.__mro__ else object)]


def _followed(function: FunctionType) -> bool:
    return _root(function.__module__) not in _NOT_FOLLOWED


def _root(module: str | None) -> str:
    return (module or "").partition(".")[0]
