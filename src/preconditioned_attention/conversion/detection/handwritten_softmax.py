"""Finding functions that write out a softmax, exponentials divided by their sum, by reading their source."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from types import FunctionType

_SUMS = {
    *("sum", "cumsum", "logsumexp", "scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_sum"),
    *("index_add", "index_add_", "segment", "segment_sum"),
}
_DIVISIONS = {"div", "div_", "true_divide"}


@functools.cache
def has_handwritten_softmax(function: FunctionType) -> bool:
    """Whether ``function`` divides by a sum of exponentials; False where its source is not available."""
    if not {"exp", "exp_", "exp2"} & set(function.__code__.co_names):
        return False
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return False
    reader = _Reader()
    reader.visit(tree)
    return reader.found


class _Reader(ast.NodeVisitor):
    """Visits assignments in order and keeps the names of exponentials and of their sums."""

    def __init__(self) -> None:
        self.exponentials: set[str] = set()
        self.sums: set[str] = set()
        self.found = False

    def visit_Assign(self, node: ast.Assign) -> None:
        """``a = ...``."""
        self.visit(node.value)
        for target in node.targets:
            self._assigned(target, node.value)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        """``a /= ...`` and the like."""
        self.found |= isinstance(node.op, ast.Div) and self._is_sum(node.value)
        self._assigned(node.target, node.value)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        """``a / b``."""
        self.found |= isinstance(node.op, ast.Div) and self._is_sum(node.right)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """``a.div(b)`` and ``torch.div(a, b)``."""
        self.found |= _called(node) in _DIVISIONS and bool(node.args) and self._is_sum(node.args[-1])
        self.generic_visit(node)

    def _assigned(self, target: ast.expr, value: ast.expr) -> None:
        names = {node.id for node in ast.walk(target) if isinstance(node, ast.Name)}
        if self._is_sum(value):
            self.sums |= names
        elif self._is_exponential(value):
            self.exponentials |= names

    def _is_sum(self, value: ast.expr) -> bool:
        return any(
            (isinstance(node, ast.Name) and node.id in self.sums)
            or (isinstance(node, ast.Call) and _called(node) in _SUMS and self._is_exponential(node))
            for node in ast.walk(value)
        )

    def _is_exponential(self, value: ast.expr) -> bool:
        return any(
            (isinstance(node, ast.Name) and node.id in self.exponentials)
            or (isinstance(node, ast.Call) and _called(node) in ("exp", "exp_", "exp2"))
            for node in ast.walk(value)
        )


def _called(node: ast.Call) -> str:
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
