import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import gradcheck

from preconditioned_attention import equilibrate, preconditioned_attention
from tests.helpers.explicit import attention_rows, diagonal_product, relative_error

GRADIENTS = ["full", "stop"]
ON_THE_CPU = ["auto", "flash", "composition", "reference"]


def causal(length: int, keys: int) -> Tensor:
    return torch.ones(length, keys, dtype=torch.bool).tril()


def inputs(batch: int = 2, heads: int = 4, kv_heads: int = 4, length: int = 7, keys: int = 7, d: int = 8, d_v: int = 8):
    shapes = [(batch, heads, length, d), (batch, kv_heads, keys, d), (batch, kv_heads, keys, d_v)]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


CASES = {
    "plain": ({}, {}),
    "value width": ({"d_v": 5}, {}),
    "unequal lengths": ({"length": 5, "keys": 11}, {}),
    "one query": ({"length": 1, "keys": 9}, {}),
    "one key": ({"keys": 1}, {}),
    "causal": ({}, {"is_causal": True}),
    "causal, unequal": ({"length": 5, "keys": 9}, {"is_causal": True}),
    "scale": ({}, {"scale": 0.7}),
    "boolean mask": ({}, {"attn_mask": torch.rand(2, 1, 7, 7, generator=torch.Generator().manual_seed(1)) > 0.4}),
    "float mask": ({}, {"attn_mask": torch.randn(4, 7, 7, generator=torch.Generator().manual_seed(2)).double()}),
    "grouped queries": ({"kv_heads": 2}, {"enable_gqa": True}),
    "one shared head": ({"kv_heads": 1, "length": 3}, {"enable_gqa": True, "scale": 0.3}),
}


# What PyTorch's own flash kernel does not take.
REFUSED = {("flash", "value width"), ("flash", "float mask")}


@pytest.mark.parametrize("backend", ON_THE_CPU)
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("case", CASES)
def test_against_the_diagonal_matrix(case: str, gradient: str, backend: str) -> None:
    shape, options = CASES[case]
    q, k, v = inputs(**shape)
    if (backend, case) in REFUSED:
        with pytest.raises(ValueError, match="does not support this call"):
            preconditioned_attention(q, k, v, gradient=gradient, backend=backend, **options)
        return
    mask = causal(q.shape[-2], k.shape[-2]) if options.get("is_causal") else options.get("attn_mask")
    out = preconditioned_attention(q, k, v, gradient=gradient, backend=backend, **options)
    rows = attention_rows(q, k, v, mask, options.get("scale"))
    expected = diagonal_product(rows, constant=gradient == "stop")
    assert out.shape == expected.shape
    assert relative_error(out, expected) <= 1e-12
    weight = torch.randn_like(out)
    actual_grads = torch.autograd.grad((out * weight).sum(), (q, k, v))
    expected_grads = torch.autograd.grad((expected * weight).sum(), (q, k, v))
    for actual, wanted in zip(actual_grads, expected_grads, strict=True):
        # With one key the true gradients of q and k are zero, and only an absolute bound holds.
        assert (actual - wanted).norm() <= 1e-12 * wanted.norm() + 1e-13


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"scale": 0.3}], ids=str)
def test_gradcheck_full(options: dict) -> None:
    q, k, v = inputs(batch=1, heads=2, kv_heads=2, length=3, keys=3, d=4, d_v=3)
    gain = torch.tensor([0.5, -2.0], dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda q, k, v, g: preconditioned_attention(q, k, v, gain=g, **options), (q, k, v, gain))


def test_gradient_of_an_additive_mask() -> None:
    q, k, v = inputs()
    mask = torch.randn(4, 7, 7, dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(v)
    (actual,) = torch.autograd.grad((preconditioned_attention(q, k, v, mask) * weight).sum(), mask)
    (expected,) = torch.autograd.grad((diagonal_product(attention_rows(q, k, v, mask)) * weight).sum(), mask)
    assert relative_error(actual, expected) <= 1e-12


@pytest.mark.parametrize("backend", ON_THE_CPU)
@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_fully_masked_rows_stay_zero(gradient: str, additive: bool, backend: str) -> None:
    q, k, v = inputs()
    mask = torch.ones(7, 7, dtype=torch.bool)
    mask[2] = False
    if additive:
        mask = torch.zeros(7, 7, dtype=torch.float64).masked_fill(~mask, -torch.inf)
    out = preconditioned_attention(q, k, v, mask, gradient=gradient, backend=backend)
    out.square().sum().backward()
    assert torch.equal(out[:, :, 2], torch.zeros(2, 4, 8, dtype=torch.float64))
    assert (out[:, :, 3:].norm(dim=-1) - 1).abs().max() <= 1e-14
    assert all(x.grad.isfinite().all() for x in (q, k, v))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_error_is_within_twice_that_of_plain_attention(dtype: torch.dtype, gradient: str) -> None:
    """The budget comes from data: what rounding does to plain attention and its composition with F.normalize."""
    q, k, v = inputs(length=49, keys=49, d=32, d_v=32)
    weight = torch.randn(2, 4, 49, 32, dtype=torch.float64)
    exact = diagonal_product(attention_rows(q, k, v), constant=gradient == "stop")
    exact_grads = torch.autograd.grad((exact * weight).sum(), (q, k, v))
    low = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
    out = preconditioned_attention(*low, gradient=gradient)
    grads = torch.autograd.grad((out.double() * weight).sum(), low)
    plain = attention_rows(q, k, v)
    plain_grads = torch.autograd.grad((plain * weight).sum(), (q, k, v))
    low_plain = F.scaled_dot_product_attention(*low)
    low_plain_grads = torch.autograd.grad((low_plain.double() * weight).sum(), low)
    rounding = torch.finfo(dtype).eps / 2
    assert relative_error(out.double(), exact) <= 2 * relative_error(low_plain.double(), plain) + rounding
    for grad, exact_grad, low_plain_grad, plain_grad in zip(
        grads, exact_grads, low_plain_grads, plain_grads, strict=True
    ):
        budget = 2 * relative_error(low_plain_grad.double(), plain_grad) + rounding
        assert relative_error(grad.double(), exact_grad) <= budget


@given(seed=st.integers(0, 2**31), factor=st.floats(1e-3, 1e3), head=st.integers(0, 2))
def test_scaling_the_values_of_a_head_changes_nothing(seed: int, factor: float, head: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, 3, 6, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    scaled = v.clone()
    scaled[:, head] *= factor
    assert relative_error(preconditioned_attention(q, k, scaled), preconditioned_attention(q, k, v)) <= 1e-12


@given(seed=st.integers(0, 2**31), n=st.integers(1, 10))
def test_token_permutation_equivariance(seed: int, n: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 3, n, 8, generator=generator, dtype=torch.float64)
    order = torch.randperm(n, generator=generator)
    permuted = x[:, :, order]
    actual = preconditioned_attention(permuted, permuted, permuted)
    assert relative_error(actual, preconditioned_attention(x, x, x)[:, :, order]) <= 1e-12


def test_the_first_row_dropped_whole_stays_zero() -> None:
    """Causal attention with dropout: the first query attends to one token, which dropout may take away."""
    q, k, v = inputs(batch=64, heads=1, kv_heads=1, length=3, keys=3)
    out = preconditioned_attention(q, k, v, dropout_p=0.5, is_causal=True)
    out.sum().backward()
    norms = out.norm(dim=-1)
    assert ((norms == 0) | ((norms - 1).abs() < 1e-12)).all()
    assert 0 < (norms[:, 0, 0] == 0).sum() < 64
    assert all(x.grad.isfinite().all() for x in (q, k, v))


@pytest.mark.parametrize("shape", [(5, 8), (3, 5, 8), (2, 3, 5, 8), (2, 2, 3, 5, 8), (0, 3, 5, 8)], ids=str)
def test_any_leading_dimensions(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    assert preconditioned_attention(x, x, x).shape == shape


def test_dtype_and_shape_are_those_of_plain_attention() -> None:
    for dtype, autocast in itertools.product([torch.float32, torch.bfloat16, torch.float16], [False, True]):
        q = torch.randn(2, 4, 6, 8).to(dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            out, plain = preconditioned_attention(q, q, q), F.scaled_dot_product_attention(q, q, q)
        assert (out.dtype, out.shape) == (plain.dtype, plain.shape)


def test_gain_is_per_query_head() -> None:
    q, k, v = inputs(kv_heads=2)
    gain = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    out = preconditioned_attention(q, k, v, enable_gqa=True, gain=gain)
    assert (out.norm(dim=-1) - gain[:, None]).abs().max() <= 1e-13


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_compiles_in_one_graph(gradient: str, dynamic: bool) -> None:
    def loss(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return preconditioned_attention(q, k, v, is_causal=True, gradient=gradient).square().cos().sum()

    q, k, v = inputs()
    expected = torch.autograd.grad(loss(q, k, v), (q, k, v))
    actual = torch.autograd.grad(torch.compile(loss, fullgraph=True, dynamic=dynamic)(q, k, v), (q, k, v))
    for a, e in zip(actual, expected, strict=True):
        assert relative_error(a, e) <= 1e-12


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"q": [1.0]}, TypeError, "q must be a torch.Tensor; got list"),
        ({"v": torch.ones(2, 4, 7, 8, dtype=torch.int64)}, TypeError, "v must be float16, .* got torch.int64"),
        ({"k": torch.ones(8)}, ValueError, r"k must have shape \(..., tokens, head_dim\); got \(8,\)"),
        ({"gradient": "all"}, ValueError, "gradient must be one of 'full', 'stop'; got 'all'"),
        ({"backend": "magic"}, ValueError, "backend must be one of 'auto', .* got 'magic'"),
        ({"eps": "tiny"}, TypeError, "eps must be a float or None"),
        ({"gain": torch.ones(3)}, ValueError, r"gain must have shape \(num_heads,\) = \(4,\); got \(3,\)"),
        ({"attn_mask": torch.ones(7, 7, dtype=torch.bool), "is_causal": True}, ValueError, "exclude each other"),
    ],
)
def test_bad_arguments_are_named(change: dict, error: type[Exception], words: str) -> None:
    arguments = dict(zip("qkv", inputs(), strict=True)) | change
    with pytest.raises(error, match=words):
        preconditioned_attention(**arguments)


@pytest.mark.parametrize("backend", ON_THE_CPU)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v: {"k": k.float()}, "q, k and v must have one dtype; got torch.float64, torch.float32"),
        (lambda q, k, v: {"v": v.to("meta")}, "q, k and v must be on one device; got cpu, cpu and meta"),
        (lambda q, k, v: {"k": k[..., :5]}, "q and k must have one head dimension"),
        (lambda q, k, v: {"k": k[..., :3, :]}, "k and v must have one length"),
        (lambda q, k, v: {"k": k[:, :3], "v": v[:, :3]}, "Heads that share keys need enable_gqa=True"),
        (lambda q, k, v: {"k": k[:, :3], "v": v[:, :3], "enable_gqa": True}, "multiple of .* got 4, 3 and 3"),
        (
            lambda q, k, v: {"attn_mask": torch.zeros(5, 7, dtype=torch.float64)},
            r"broadcast to the scores, \(2, 4, 7, 7\); got .*\(5, 7\)",
        ),
        (
            lambda q, k, v: {"attn_mask": torch.zeros(6, dtype=torch.float64)},
            r"must broadcast to the scores, .* got shape \(6,\)",
        ),
        (lambda q, k, v: {"attn_mask": torch.zeros(7, 7, dtype=torch.int32)}, "boolean .* got torch.int32"),
        (lambda q, k, v: {"attn_mask": torch.zeros(7, 7, device="meta")}, "must be on the device of q, cpu; got meta"),
    ],
)
def test_tensors_that_do_not_go_together_raise(change, message: str, backend: str) -> None:
    q, k, v = inputs()
    with pytest.raises(ValueError, match=message):
        preconditioned_attention(**{"q": q, "k": k, "v": v} | change(q, k, v), backend=backend)


def test_what_plain_attention_broadcasts_is_broadcast() -> None:
    q, k, v = inputs()
    mask = torch.randn(2, 1, 1, 7, dtype=q.dtype)
    for a, b, c, m in [(q, k[:1], v[:1], mask), (q, k[:, :1], v[:, :1], None), (q[0, 0], k[0, 0], v[0, 0], mask[0, 0])]:
        expected = equilibrate(F.scaled_dot_product_attention(a, b, c, m))
        assert relative_error(preconditioned_attention(a, b, c, m), expected) <= 1e-13


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_exports_with_a_dynamic_length(gradient: str) -> None:
    class Attention(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return preconditioned_attention(q, k, v, is_causal=True, gradient=gradient)

    length = torch.export.Dim("length", min=2)
    example = tuple(x.detach() for x in inputs())
    program = torch.export.export(Attention(), example, dynamic_shapes=[{2: length}] * 3)
    q, k, v = (x.detach() for x in inputs(length=11, keys=11))
    expected = preconditioned_attention(q, k, v, is_causal=True)
    for lowered in (program, program.run_decompositions()):
        assert (
            "preconditioned_attention" not in lowered.graph_module.code
        )  # it runs where this package is not installed
        assert relative_error(lowered.module()(q, k, v), expected) <= 1e-13


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_fake_tensors_have_the_right_shape_and_layout(device: str) -> None:
    """Nothing is computed, so no GPU is needed; only the autograd engine wants one."""
    with FakeTensorMode():
        q, k, v = (torch.empty(2, 5, 4, 16, device=device).transpose(1, 2).requires_grad_() for _ in range(3))
        out = preconditioned_attention(q, k, v)
        plain = F.scaled_dot_product_attention(q, k, v)
        if device == "cpu":
            out.sum().backward()
            assert q.grad.shape == q.shape
    assert (out.shape, out.stride(), out.dtype, out.device) == (plain.shape, plain.stride(), plain.dtype, plain.device)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_autocast_with_gradients(gradient: str) -> None:
    """Float32 leaves under autocast get the gradients of their bfloat16 copies."""
    q, k, v = (x.detach().float().requires_grad_() for x in inputs())
    weight = torch.randn(2, 4, 7, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = preconditioned_attention(q, k, v, gradient=gradient)
    assert out.dtype == torch.bfloat16
    low = [x.detach().bfloat16().requires_grad_() for x in (q, k, v)]
    expected = preconditioned_attention(*low, gradient=gradient)
    assert torch.equal(out, expected)
    grads = torch.autograd.grad((out * weight).sum(), (q, k, v))
    for actual, wanted in zip(grads, torch.autograd.grad((expected * weight).sum(), low), strict=True):
        assert actual.dtype == torch.float32
        assert torch.equal(actual, wanted.float())


def test_autocast_decides_what_counts_as_a_zero_row() -> None:
    """Rows of norm 1e-5 are below what float16 keeps a direction of, and above what bfloat16 does."""
    q = torch.full((1, 1, 1, 4), 5e-6)
    for dtype, norm in ((torch.float16, 1e-5), (torch.bfloat16, 1.0)):
        with torch.autocast("cpu", dtype=dtype):
            assert preconditioned_attention(q, q, q).float().norm().item() == pytest.approx(norm, rel=0.02)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_compiled_call_serves_other_shapes(gradient: str) -> None:
    """The second shape makes the compiler take all sizes as unknown; the heads are not contiguous."""
    torch.compiler.reset()
    attend = torch.compile(
        lambda q, k, v: preconditioned_attention(q, k, v, gradient=gradient), fullgraph=True, backend="aot_eager"
    )
    for shape in [(4, 9, 3, 8), (2, 7, 4, 16), (3, 5, 2, 24)]:
        q, k, v = (torch.randn(shape).transpose(1, 2).requires_grad_() for _ in range(3))
        weight = torch.randn(shape).transpose(1, 2)
        actual = torch.autograd.grad(attend(q, k, v), (q, k, v), weight)
        out = preconditioned_attention(q, k, v, gradient=gradient, backend="reference")
        for a, e in zip(actual, torch.autograd.grad(out, (q, k, v), weight), strict=True):
            assert relative_error(a, e) <= 1e-5
