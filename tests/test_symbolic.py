import io

import pytest
import torch
from torch import Tensor, nn

from preconditioned_attention import (
    equilibrate,
    preconditioned_attention,
    preconditioned_flex_attention,
    preconditioned_varlen_attention,
)
from preconditioned_attention._symbolic import is_symbolic, one_call, one_node, trace_into
from preconditioned_attention.config import PreconditionConfig
from preconditioned_attention.layers import Preconditioner


class Functions(nn.Module):
    """Every public function, with options and keywords; attention over a learned query."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(3))
        self.query = nn.Parameter(torch.randn(1, 3, 2, 16))

    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        packed = x[0].transpose(0, 1)
        return (
            preconditioned_attention(x, x, x, is_causal=True, gradient="stop", gain=self.gain),
            preconditioned_attention(self.query, x, x),
            equilibrate(x, eps=1e-3),
            preconditioned_varlen_attention(packed, packed, packed, positions, positions, 4, 4),
            preconditioned_flex_attention(x, x, x),
        )


def test_every_function_is_one_node() -> None:
    module, x = Functions(), torch.randn(1, 3, 5, 16)
    positions = torch.tensor([0, 1, 5], dtype=torch.int32)
    graph = torch.fx.symbolic_trace(module)
    ours = [n.target for n in graph.graph.nodes if "preconditioned" in getattr(n.target, "__module__", "")]
    assert len(ours) == 5
    assert set(dict(graph.named_parameters())) == {"gain", "query"}
    buffer = io.BytesIO()
    torch.save(graph, buffer)
    buffer.seek(0)
    with torch.no_grad():
        for got in (graph, torch.load(buffer, weights_only=False)):
            for out, expected in zip(got(x, positions), module(x, positions), strict=True):
                assert torch.equal(out, expected)


def test_a_preconditioner_is_asked_for_rows_or_for_attention() -> None:
    preconditioner, x = Preconditioner(PreconditionConfig()), torch.randn(1, 2, 3, 8)

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.preconditioner = preconditioner

        def forward(self, x: Tensor) -> Tensor:
            return self.preconditioner(self.preconditioner.attend(x, x, x, None, 0.0, True))

    graph = torch.fx.symbolic_trace(Attention())
    assert [node.target for node in graph.graph.nodes if node.op == "call_method"] == ["attend", "forward"]
    assert torch.equal(graph(x), Attention()(x))


def test_wrong_arguments_are_named_when_the_graph_runs() -> None:
    graph = torch.fx.symbolic_trace(lambda x: equilibrate(x, gradient="half"))
    with pytest.raises(ValueError, match="gradient must be one of"):
        graph(torch.randn(2, 3))


def test_decorated_functions_keep_their_names() -> None:
    @one_call
    def double(x: Tensor, *, times: int = 2) -> Tensor:
        """Twice."""
        return x * times

    assert (double.__name__, double.__doc__, double.__module__) == ("double", "Twice.", __name__)
    assert double(torch.ones(1), times=3).item() == 3


def test_torch_compile_counts_each_function_by_itself() -> None:
    assert len({f.__code__ for f in (preconditioned_attention, equilibrate, preconditioned_varlen_attention)}) == 3
    assert Preconditioner.forward.__code__ is not Preconditioner.attend.__code__
    with torch._dynamo.config.patch(recompile_limit=1):
        torch._dynamo.reset()
        x = torch.randn(1, 2, 3, 8)
        for function in (
            equilibrate,
            lambda x: preconditioned_attention(x, x, x),
            Preconditioner(PreconditionConfig()),
        ):
            torch.compile(function, backend="eager", fullgraph=True)(x)


def test_a_module_that_is_traced_itself_is_looked_into() -> None:
    class Doubling(nn.Module):
        @one_node
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    root = torch.fx.symbolic_trace(Doubling())
    assert [node.op for node in root.graph.nodes] == ["placeholder", "call_function", "output"]
    child = torch.fx.symbolic_trace(nn.Sequential(Doubling()))
    assert [node.op for node in child.graph.nodes] == ["placeholder", "get_attr", "call_method", "output"]
    assert child(torch.ones(1)).item() == 2


def test_hooks_act_once() -> None:
    class Half(nn.Module):
        @one_node
        def forward(self, x: Tensor) -> Tensor:
            return x / 2

    half = Half()
    half.register_forward_hook(lambda module, args, output: output + 1)
    model = nn.Sequential(half)
    assert torch.fx.symbolic_trace(model)(torch.ones(1)).item() == model(torch.ones(1)).item() == 1.5


def test_tracers_look_into_a_module_while_they_are_told_to() -> None:
    layer = nn.Linear(2, 3)
    for yes in (True, False):
        trace_into(layer, yes)
        nodes = torch.fx.symbolic_trace(nn.Sequential(layer)).graph.nodes
        assert any(node.op == "call_module" for node in nodes) == (not yes)
    assert "__module__" not in vars(layer)


def test_symbols_are_told_from_tensors() -> None:
    seen = []

    def look(x: Tensor) -> Tensor:
        seen.append((is_symbolic(1, x), is_symbolic(1, torch.ones(1), None)))
        return x

    torch.fx.symbolic_trace(look)
    assert seen == [(True, False)]
