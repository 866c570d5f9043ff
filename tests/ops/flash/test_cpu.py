from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._decomp import core_aten_decompositions
from torch._dynamo.backends.common import aot_autograd
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from preconditioned_attention import preconditioned_attention
from preconditioned_attention.equilibration import default_eps
from preconditioned_attention.ops import AttentionInputs
from preconditioned_attention.ops.flash.cpu import FLASH_CPU
from tests.helpers.budgets import budgets, packed
from tests.helpers.explicit import attention_rows, diagonal_product, relative_error

FLASH = SDPBackend.FLASH_ATTENTION.value
GRADIENTS = ["full", "stop"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def call(q: Tensor, k: Tensor, v: Tensor, **options) -> AttentionInputs:
    defaults = {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None, "enable_gqa": False}
    return AttentionInputs(q=q, k=k, v=v, gradient="full", gain=None, eps=default_eps(q.dtype), **defaults | options)


def test_supports_the_calls_for_which_pytorch_takes_its_flash_kernel() -> None:
    """The refusals agree with PyTorch's own choice, on everything that both speak of."""
    x, kv = torch.randn(2, 4, 7, 8), torch.randn(2, 2, 9, 8)
    calls = {
        "plain": call(x, x, x),
        "gqa": call(x, kv, kv, enable_gqa=True),
        "three heads for two": call(x[:, :3], kv, kv, enable_gqa=True),
        "value width": call(x, x, x[..., :5]),
        "dropout": call(x, x, x, dropout_p=0.1),
        "strided head dimension": call(x.mT.contiguous().mT, x, x),
        "expanded": call(x[:1].expand(2, 4, 7, 8), x, x),
        "no batch": call(x[:0], x[:0], x[:0]),
        "no query": call(x[:, :, :0], x, x),
        "no key": call(x, x[:, :, :0], x[:, :, :0]),
    }
    for shape in [(7, 7), (1, 7), (2, 1, 7, 7), (1, 1, 1, 7), (4, 7, 7), (2, 4, 7, 7)]:
        additive = torch.randn(shape)
        calls |= {
            f"additive {shape}": call(x, x, x, attn_mask=additive),
            f"boolean {shape}": call(x, x, x, attn_mask=additive > 0),
            f"learned {shape}": call(x, x, x, attn_mask=additive.clone().requires_grad_()),
        }
    for name, c in calls.items():
        try:
            choice = torch._fused_sdp_choice(
                c.q, c.k, c.v, c.attn_mask, c.dropout_p, c.is_causal, scale=c.scale, enable_gqa=c.enable_gqa
            )
        except RuntimeError:  # PyTorch refuses the call altogether
            choice = None
        assert (FLASH_CPU.unsupported_reason(c) is None) == (choice == FLASH), name


def test_refuses_what_it_must() -> None:
    x = torch.randn(1, 2, 3, 4)
    assert "too large" in FLASH_CPU.unsupported_reason(replace(call(x, x, x), eps=0.1))
    assert "four axes" in FLASH_CPU.unsupported_reason(call(x[0], x[0], x[0]))
    with sdpa_kernel(SDPBackend.MATH):
        assert "switched off" in FLASH_CPU.unsupported_reason(call(x, x, x))
    refusals = []
    torch.func.vmap(lambda y: (refusals.append(FLASH_CPU.unsupported_reason(call(y, y, y))), y)[1])(x[None])
    assert refusals == ["torch.func transforms are not supported"]


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_under_torch_func(gradient: str) -> None:
    """vmap and grad go by the composition, as plain attention does there."""
    q = torch.randn(3, 2, 4, 5, 8, dtype=torch.float64)
    mapped = torch.func.vmap(lambda x: preconditioned_attention(x, x, x, gradient=gradient))(q)
    assert relative_error(mapped, preconditioned_attention(q, q, q, gradient=gradient)) <= 1e-14
    grad = torch.func.grad(lambda x: preconditioned_attention(x, x, x, gradient=gradient).cos().sum())(q[0])
    x = q[0].clone().requires_grad_()
    (expected,) = torch.autograd.grad(preconditioned_attention(x, x, x, gradient=gradient).cos().sum(), x)
    assert relative_error(grad, expected) <= 1e-12


SHAPES = [(7, 24), (49, 48), (197, 64), (49, 80), (7, 128), (49, 256)]
MASKS = ["none", "causal", "boolean", "float"]
GRID = [(*shape, mask) for shape in SHAPES for mask in MASKS] + [(1000, 64, "none"), (1000, 64, "causal")]


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("length", "d", "kind"), GRID)
def test_error_budget(length: int, d: int, kind: str, dtype: torch.dtype, gradient: str) -> None:
    inputs = packed(1, 2, length, d, dtype)
    weight = torch.randn(1, 2, length, d, dtype=torch.float64).to(dtype).double()
    mask = {
        "none": None,
        "causal": torch.ones(length, length, dtype=torch.bool).tril(),
        "boolean": torch.rand(length, length) > 0.3,
        "float": torch.randn(length, length).to(dtype),
    }[kind]
    options = {"none": {}, "causal": {"is_causal": True}}.get(kind, {"attn_mask": mask})
    exact_mask = mask.double() if kind == "float" else mask
    for error, allowed in budgets(inputs, weight, exact_mask, gradient, "flash", **options):
        assert error <= allowed


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [0.1, 0.01, 100.0])
def test_error_budget_of_short_and_long_values(size: float, dtype: torch.dtype, gradient: str) -> None:
    """The kernel's delta is subtracted from products with the values: what is handed over must not drown them."""
    q, k, v = packed(1, 2, 197, 64, dtype)
    weight = torch.randn(1, 2, 197, 64, dtype=torch.float64).to(dtype).double()
    inputs = [q, k, (v.detach() * size).requires_grad_()]
    for error, allowed in budgets(inputs, weight, None, gradient, "flash"):
        assert error <= allowed


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_long_cache_grouped_heads_and_expanded_keys(gradient: str) -> None:
    q = torch.randn(2, 6, 1, 16, dtype=torch.float64, requires_grad=True)
    kv = torch.randn(1, 2, 500, 16, dtype=torch.float64, requires_grad=True)
    k = kv.expand(2, 2, 500, 16)
    out = preconditioned_attention(q, k, k, enable_gqa=True, gradient=gradient, backend="flash")
    expected = diagonal_product(attention_rows(q, k, k), constant=gradient == "stop")
    assert relative_error(out, expected) <= 1e-13
    weight = torch.randn_like(out)
    actual_grads = torch.autograd.grad((out * weight).sum(), (q, kv))
    for a, e in zip(actual_grads, torch.autograd.grad((expected * weight).sum(), (q, kv)), strict=True):
        assert relative_error(a, e) <= 1e-12


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_short_rows_in_float16_have_finite_gradients(gradient: str) -> None:
    """Rows a little above eps: the kernel's weights are near 1/eps, which float16 cannot hold times much."""
    q, k, v = packed(1, 2, 9, 16, torch.float16)
    v = (v.detach() * 3e-5).requires_grad_()
    out = preconditioned_attention(q, k, v, gradient=gradient, backend="flash")
    weight = torch.randn(1, 2, 9, 16).half() * 1e-3
    grads = torch.autograd.grad((out * weight).sum(), (q, k, v))
    exact_inputs = [x.detach().double().requires_grad_() for x in (q, k, v)]
    rows = attention_rows(*exact_inputs)
    assert rows.norm(dim=-1).min() < 2**-10
    exact = diagonal_product(rows, constant=gradient == "stop", eps=default_eps(torch.float16))
    exact_grads = torch.autograd.grad((exact * weight.double()).sum(), exact_inputs)
    assert all(grad.isfinite().all() for grad in grads)
    assert relative_error(grads[2].double(), exact_grads[2]) <= 0.05


def saved_bytes(attend, layout_of_heads: int) -> int:
    """Distinct storages that attention, head merge and output projection keep for the backward pass."""
    qkv = torch.randn(2, 64, 3, 4, 16).permute(2, 0, 3, 1, 4)
    q, k, v = (x.to(DTYPES[layout_of_heads]).requires_grad_() for x in qkv.unbind(0))
    projection = torch.nn.Linear(64, 64, dtype=q.dtype)
    storages: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = projection(attend(q, k, v).transpose(1, 2).flatten(2))
    assert out.requires_grad
    return sum(storages.values())


@pytest.mark.parametrize("dtype", [0, 1], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_saves_what_plain_attention_saves_and_at_most_one_float_per_row(gradient: str, dtype: int) -> None:
    plain = saved_bytes(F.scaled_dot_product_attention, dtype)
    ours = saved_bytes(lambda q, k, v: preconditioned_attention(q, k, v, gradient=gradient), dtype)
    per_row = 2 * 64 * 4 * 4
    assert ours <= plain + (per_row if gradient == "stop" else 0)


def test_keeps_the_strides_of_plain_attention() -> None:
    q, k, v = packed(2, 4, 9, 8)
    assert preconditioned_attention(q, k, v).stride() == F.scaled_dot_product_attention(q, k, v).stride()


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_no_uninitialized_memory_reaches_the_results(gradient: str) -> None:
    """PyTorch fills fresh memory with NaN in this mode."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        assert torch.empty(3).isnan().all()
        q, k, v = packed(2, 3, 19, 24, torch.float32)
        mask = torch.rand(19, 19) > 0.4
        mask[3] = False
        out = preconditioned_attention(q, k, v, mask, gradient=gradient, backend="flash")
        grads = torch.autograd.grad(out.square().cos().sum(), (q, k, v))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(x.isfinite().all() for x in (out, *grads))


def test_activation_checkpointing() -> None:
    q, k, v = packed(1, 2, 9, 8)
    expected = torch.autograd.grad(preconditioned_attention(q, k, v).cos().sum(), (q, k, v))
    out = checkpoint(preconditioned_attention, q, k, v, use_reentrant=False)
    for actual, wanted in zip(torch.autograd.grad(out.cos().sum(), (q, k, v)), expected, strict=True):
        assert torch.equal(actual, wanted)


def test_inference_saves_nothing_and_agrees() -> None:
    q, k, v = packed(1, 2, 9, 8)
    expected = preconditioned_attention(q, k, v)
    with torch.no_grad():
        assert torch.equal(preconditioned_attention(q, k, v), expected)
    with torch.inference_mode():
        assert torch.equal(preconditioned_attention(q, k, v), expected)


@pytest.mark.parametrize("masked", [False, True])
def test_the_backward_operator_that_compilers_see(masked: bool) -> None:
    q, k, v = (x.detach() for x in packed(2, 3, 7, 8, torch.float32))
    bias = torch.randn(7, 7) if masked else None
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=bias)
    arguments = (torch.randn_like(out), q, k, v, out, lse, False, bias, 0.5)
    torch.library.opcheck(torch.ops.preconditioned_attention.flash_cpu_backward.default, arguments)


@pytest.mark.parametrize("gradient", ["full", "stop"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_values_whose_squares_overflow_when_compiled(dtype: torch.dtype, gradient: str) -> None:
    q, k, v = (x.detach() for x in packed(2, 3, 7, 8, dtype))
    v[0] *= 1e30
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    weight = torch.randn_like(v)

    def results(attend: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        y = attend(*inputs, gradient=gradient)
        return y, *torch.autograd.grad(y, inputs, weight)

    compiled = results(torch.compile(preconditioned_attention, fullgraph=True))
    assert all(x.isfinite().all() for x in compiled)
    rounding = 8 * torch.finfo(dtype).eps
    for got, expected in zip(compiled, results(preconditioned_attention), strict=True):
        for sample in range(2):  # the gradient of v is 1e-30 in one of them
            assert relative_error(got[sample], expected[sample]) <= rounding


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_float64_compiled(backend: str) -> None:
    """Also where PyTorch says that its kernel's row constants are float32, as 2.11 does."""
    torch._dynamo.reset()
    q = torch.randn(1, 2, 5, 8, dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(lambda x: preconditioned_attention(x, x, x), fullgraph=True, backend=backend)
    out, expected = compiled(q), preconditioned_attention(q, q, q)
    assert relative_error(out, expected) <= 1e-13
    grads = (torch.autograd.grad(y.cos().sum(), q)[0] for y in (out, expected))
    assert relative_error(*grads) <= 1e-13


def test_a_compiler_that_decomposes_pytorchs_operators() -> None:
    """It must not meet the flash kernel: its decomposition returns the attention weights for the row constants."""
    torch._dynamo.reset()
    graphs: list[str] = []

    def compiler(graph: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append(graph.code)
        return make_boxed_func(graph.forward)

    decomposing = aot_autograd(fw_compiler=compiler, decompositions=core_aten_decompositions())
    q = torch.randn(1, 2, 5, 8, dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(lambda x: preconditioned_attention(x, x, x), fullgraph=True, backend=decomposing)
    out, expected = compiled(q), preconditioned_attention(q, q, q)
    assert relative_error(out, expected) <= 1e-13
    assert relative_error(*(torch.autograd.grad(y.cos().sum(), q)[0] for y in (out, expected))) <= 1e-13
    assert len(graphs) == 2
    assert not any("aten._scaled_dot_product" in graph for graph in graphs)


def test_the_forward_operator_that_compilers_see() -> None:
    q = torch.randn(1, 2, 5, 8, dtype=torch.float64)
    operator = torch.ops.preconditioned_attention.flash_cpu_forward.default
    torch.library.opcheck(operator, (q, q, q, True, None, None))
    torch.library.opcheck(operator, (q, q, q, False, torch.zeros(5, 5, dtype=torch.float64), 0.3))
