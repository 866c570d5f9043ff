from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from preconditioned_attention import preconditioned_attention
from preconditioned_attention.ops.tracing import is_recorded
from tests.helpers.explicit import relative_error

X = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    def __init__(self, **options: object) -> None:
        super().__init__()
        self.options = options
        self.was_recorded: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.was_recorded.append(is_recorded())
        return preconditioned_attention(x, x, x, **self.options)


RECORDERS: dict[str, Callable[[nn.Module], object]] = {
    "export": lambda module: torch.export.export(module, (X,)).graph_module.code,
    "strict export": lambda module: torch.export.export(module, (X,), strict=True).graph_module.code,
    "jit.trace": lambda module: torch.jit.trace(module, (X,)).inlined_graph,
    "make_fx": lambda module: make_fx(module, pre_dispatch=True)(X).code,
}


@pytest.mark.parametrize("recorder", RECORDERS)
@pytest.mark.parametrize("gradient", ["full", "stop"])
def test_what_is_recorded_is_plain_attention_and_arithmetic(recorder: str, gradient: str) -> None:
    code = str(RECORDERS[recorder](Attention(gradient=gradient)))
    assert "scaled_dot_product_attention" in code
    assert not any(foreign in code for foreign in ("_flash_attention", "preconditioned_attention.", "PythonOp"))


@pytest.mark.parametrize("recorder", RECORDERS)
def test_a_fused_kernel_that_is_asked_for_is_refused(recorder: str) -> None:
    with pytest.raises(Exception, match=r"(?s)record what every tool knows.*Use backend='auto'"):
        RECORDERS[recorder](Attention(backend="flash"))
    RECORDERS[recorder](Attention(backend="composition"))


@pytest.mark.parametrize("table", [{}, torch._decomp.core_aten_decompositions(), None])
def test_the_dispatchers_tracer(table: dict | None) -> None:
    """`make_fx` with any decompositions, without and with gradients in the graph."""
    module = Attention()
    assert relative_error(make_fx(module, decomposition_table=table)(X)(X), module(X)) <= 1e-6

    def gradient(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(preconditioned_attention(x, x, x, backend="composition").cos().sum(), x)[0]

    assert relative_error(make_fx(gradient, decomposition_table=None)(X)(X), gradient(X)) <= 1e-5


def test_otherwise_nothing_is_recorded() -> None:
    module = Attention()
    module(X)
    torch._dynamo.reset()
    torch.compile(module, backend="eager")(X)
    assert module.was_recorded == [False, False]
