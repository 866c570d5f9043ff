"""Marks for torch.compile: PyTorch's own, without its import."""

import subprocess
import sys

import pytest
import torch

from preconditioned_attention._compiler import assume_constant_result, break_graph_at


def test_the_mark_is_the_one_that_pytorch_sets() -> None:
    ours, theirs = (mark(lambda: None) for mark in (assume_constant_result, torch.compiler.assume_constant_result))
    assert vars(ours) == vars(theirs) != {}


def test_a_graph_ends_where_it_was_told_to() -> None:
    calls = []

    def note() -> None:
        calls.append(None)

    break_graph_at(note, reason="it has to run")
    theirs = torch.compiler.disable(note, reason="it has to run")
    assert vars(note).items() <= vars(theirs).items()

    def call(x: torch.Tensor) -> torch.Tensor:
        note()
        return x + 1

    with pytest.raises(torch._dynamo.exc.Unsupported, match="it has to run"):
        torch.compile(call, backend="eager", fullgraph=True)(torch.ones(()))
    assert torch.compile(call, backend="eager")(torch.ones(())) == 2
    assert len(calls) == 1


COMPILES = """
import torch
from preconditioned_attention._compiler import assume_constant_result

@assume_constant_result
def runs():
    seen.append(None)
    return len(seen)

seen = []
compiled = torch.compile(lambda x: x + runs(), fullgraph=True, backend="eager")
print(compiled(torch.ones(())).item(), compiled(torch.ones(())).item(), len(seen))
"""


def test_a_marked_function_runs_once_while_code_is_traced() -> None:
    out = subprocess.run([sys.executable, "-c", COMPILES], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["2.0", "2.0", "1"]


IMPORTS = """
import sys, torch
COMPILERS = ("torch._dynamo", "torch._inductor", "triton", "sympy", "torch.distributed.tensor")
before = {name for name in COMPILERS if name in sys.modules}
import preconditioned_attention as pa
for name in pa.__all__:
    if name != "compare":
        getattr(pa, name)
q = torch.randn(1, 2, 5, 4, requires_grad=True)
pa.preconditioned_attention(q, q, q).sum().backward()
print([name for name in COMPILERS if name in sys.modules and name not in before])
"""


def test_neither_the_library_nor_an_eager_call_imports_a_compiler() -> None:
    out = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
