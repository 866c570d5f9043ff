"""Which modules compute attention, registered or not: so that what stays unconverted is listed, never overlooked.

Only for listing. A class counts if the code that its forward runs calls an attention function, or takes a softmax and
a matrix product; or if it is named after attention and has query, key and value projections. The code that a forward
runs: its methods and the functions of its file, as far as their names tell.
"""

from __future__ import annotations

import dis
import functools
import inspect
import re
from collections.abc import Iterator
from types import CodeType, FunctionType

from torch import nn

_ATTENTION_CALLS = re.compile(
    r"scaled_dot_product_attention|multi_head_attention_forward|flash_attn_\w+|memory_efficient_attention|flex_attention"
    r"|dispatch_attention_fn|shifted_window_attention\w*|(ms|multi_?scale)_deform(able)?_att(entio)?n\w*|natten\w+"
)
_SOFTMAX = re.compile(r"(?!log_)(\w+_)?X?[sS]oftmax")
_PRODUCTS = {"matmul", "bmm", "baddbmm", "einsum"}
_PROJECTIONS = {
    *("qkv", "qkv_proj", "in_proj", "in_proj_weight", "c_attn", "Wqkv", "query_key_value", "kv", "qk"),
    *("q", "q_proj", "query", "to_q", "wq", "to_qkv", "q_lin", "query_proj", "q_linear"),
}


def computes_attention(module: nn.Module) -> bool:
    """Whether ``module`` itself, not a child of it, seems to compute attention."""
    cls: type = type(module)
    if _code_computes_attention(cls):
        return True
    own_names = {name for name, _ in module.named_children()} | {
        name for name, _ in module.named_parameters(recurse=False)
    }
    return _has_the_name(cls) and bool(own_names & _PROJECTIONS)


def named_after_attention(cls: type[nn.Module]) -> bool:
    """Whether ``cls`` has attention's name and projections by its code, where there is no module to look at."""
    makers = (inspect.unwrap(vars(base)["__init__"]) for base in cls.__mro__ if "__init__" in vars(base))
    names = {name for maker in makers if isinstance(maker, FunctionType) for name in maker.__code__.co_names}
    return _has_the_name(cls) and bool(names & _PROJECTIONS)


def _has_the_name(cls: type) -> bool:
    return re.search(r"attention|attn", cls.__name__, re.IGNORECASE) is not None


@functools.cache
def _code_computes_attention(cls: type) -> bool:
    names: set[str] = set()
    product = False
    for code in _code_run_by_forward(cls):
        names |= set(code.co_names)
        product = product or any(i.opname == "BINARY_OP" and i.argrepr == "@" for i in dis.get_instructions(code))
    if any(_ATTENTION_CALLS.fullmatch(name) for name in names):
        return True
    return any(_SOFTMAX.fullmatch(name) for name in names) and (product or bool(names & _PRODUCTS))


def _code_run_by_forward(cls: type) -> Iterator[CodeType]:
    """The code of `forward`, of the methods and functions that it names, and those name, with what is nested in them.

    Definitions that a subclass overrides count too: it may call them by `super()`. Functions count if they are
    defined in the same file as the code that names them.
    """
    pending: list[FunctionType] = list(_methods(cls, "forward"))
    seen: set[FunctionType] = set()
    while pending:
        function = pending.pop()
        if function in seen:
            continue
        seen.add(function)
        for code in nested_code(function.__code__):
            yield code
            for name in code.co_names:
                pending.extend(_methods(cls, name))
                pending.extend(_own_functions(function, name))


def _methods(cls: type, name: str) -> Iterator[FunctionType]:
    """Every definition of the method ``name`` in ``cls`` and its bases, those of `nn.Module` left out."""
    if name == "forward" or not hasattr(nn.Module, name):
        for base in cls.__mro__:
            method = vars(base).get(name)
            if isinstance(method, staticmethod | classmethod):
                method = method.__func__
            yield from _as_function(method)


def _own_functions(caller: FunctionType, name: str) -> Iterator[FunctionType]:
    """The function that ``caller`` means by ``name``, if both are of one file."""
    for found in _as_function(caller.__globals__.get(name)):
        if found.__module__ == caller.__module__:
            yield found


def _as_function(value: object) -> Iterator[FunctionType]:
    """``value``, out of what its decorators wrap it in, if it is a function."""
    if callable(value):
        function = inspect.unwrap(value)
        if isinstance(function, FunctionType):
            yield function


def nested_code(code: CodeType) -> Iterator[CodeType]:
    """``code`` and every function, comprehension or lambda compiled inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from nested_code(constant)
