"""FlexAttention and the scaling of its rows: values, gradients where PyTorch computes them, bytes saved."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from preconditioned_attention import preconditioned_attention
from preconditioned_attention.ops.flex import flex_then_normalize
from tests.helpers.explicit import attention_rows, diagonal_product, relative_error

GRADIENTS = ["full", "stop"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    """FlexAttention traces even when uncompiled, and every case here is a retrace of the same function."""
    torch.compiler.reset()


@pytest.fixture
def training_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uncompiled, FlexAttention's backward pass is plain PyTorch and runs anywhere; a check at its door forbids it."""
    monkeypatch.setattr(torch_flex, "_validate_device", lambda query, key, value: None)


def attend(
    q: Tensor, k: Tensor, v: Tensor, score_mod=None, block_mask=None, gradient: str = "full", **options
) -> Tensor:
    defaults = {"scale": None, "enable_gqa": False, "kernel_options": None, "gain": None, "eps": None}
    return flex_then_normalize(q, k, v, score_mod, block_mask, gradient=gradient, **defaults | options)


def causal(b, h, i, j):
    return i >= j


def window(b, h, i, j):
    return (i - j).abs() <= 3


def documents(b, h, i, j):
    """Documents of five tokens, attended causally."""
    return (i // 5 == j // 5) & (i >= j)


def one_row_masked(b, h, i, j):
    return (i >= j) & (i != 3)


def slopes(score, b, h, i, j):
    return score - (i - j).abs() * 0.5 ** (h + 1)


def soft_cap(score, b, h, i, j):
    return 2 * torch.tanh(score / 2)


MASKS = {f.__name__: f for f in (causal, window, documents, one_row_masked)}
SCORES = {f.__name__: f for f in (slopes, soft_cap)}


def additive(name: str, q: Tensor, k: Tensor, bias: Tensor | None = None) -> Tensor | None:
    """What a case adds to the scores, (B, H, L, S) or less; -inf where it masks."""
    h, i, j = torch.arange(q.shape[1])[:, None, None], torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2])
    if name in MASKS:
        allowed = MASKS[name](0, h, i, j)
        return torch.zeros(allowed.shape, dtype=q.dtype).masked_fill(~allowed, -math.inf)
    if name in SCORES:
        keys = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        scores = q @ keys.mT / math.sqrt(q.shape[3])
        return SCORES[name](scores, 0, h, i, j) - scores
    return bias


def arguments(name: str, q: Tensor, k: Tensor) -> dict:
    if name in MASKS:
        return {"block_mask": create_block_mask(MASKS[name], None, None, q.shape[2], k.shape[2], device="cpu")}
    return {"score_mod": SCORES[name]} if name in SCORES else {}


def tensors(length: int, keys: int, d: int, d_v: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    shapes = [(2, 4, length, d), (2, 2, keys, d), (2, 2, keys, d_v)]
    return [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]


SHAPES = [(1, 500, 16, 16), (7, 7, 24, 24), (49, 197, 48, 48), (197, 49, 80, 80), (33, 65, 8, 20)]
CASES = ["none", *MASKS, *SCORES]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_forward_against_the_diagonal_matrix(name: str, shape: tuple[int, ...]) -> None:
    """Exact in float64; in low precision the yardstick is what rounding does to plain FlexAttention."""
    exact_inputs = tensors(*shape)
    for dtype in (torch.float64, *DTYPES):
        q, k, v = (x.to(dtype) for x in exact_inputs)
        wide = [x.double() for x in (q, k, v)]
        rows = attention_rows(*wide, additive(name, *wide[:2]))
        options = {**arguments(name, q, k), "enable_gqa": True}
        plain = relative_error(flex_attention(q, k, v, **options).double(), rows)
        ours = relative_error(attend(q, k, v, **options).double(), diagonal_product(rows))
        assert ours <= 2 * plain + torch.finfo(dtype).eps, dtype


@pytest.mark.usefixtures("training_on_the_cpu")
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("name", CASES)
def test_every_gradient_in_float64(name: str, gradient: str) -> None:
    q, k, v = (x.requires_grad_() for x in tensors(11, 17, 8, 6))
    gain = torch.randn(4, dtype=torch.float64, requires_grad=True)
    out = attend(q, k, v, gradient=gradient, gain=gain, enable_gqa=True, **arguments(name, q, k))
    # The matrix `diag(1 / ||A_i||)` has no derivative in a zero row; there the package's own definition is asked.
    expected = preconditioned_attention(
        q, k, v, additive(name, q, k), enable_gqa=True, gradient=gradient, gain=gain, backend="reference"
    )
    assert relative_error(out, expected) <= 1e-13
    weight = torch.randn_like(out)
    actual = torch.autograd.grad((out * weight).sum(), (q, k, v, gain))
    wanted = torch.autograd.grad((expected * weight).sum(), (q, k, v, gain))
    assert all(relative_error(a, w) <= 1e-12 for a, w in zip(actual, wanted, strict=True))


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_gradient_of_a_captured_bias(gradient: str) -> None:
    """The only gradient that FlexAttention gives on the CPU without further ado."""
    q, k, v = tensors(11, 17, 8, 6)
    bias = torch.randn(4, 11, 17, dtype=torch.float64, requires_grad=True)
    out = attend(q, k, v, lambda score, b, h, i, j: score + bias[h, i, j], enable_gqa=True, gradient=gradient)
    expected = diagonal_product(attention_rows(q, k, v, bias), constant=gradient == "stop")
    weight = torch.randn_like(out)
    (actual,) = torch.autograd.grad((out * weight).sum(), bias)
    (wanted,) = torch.autograd.grad((expected * weight).sum(), bias)
    assert relative_error(actual, wanted) <= 1e-12


@pytest.mark.usefixtures("training_on_the_cpu")
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["causal", "soft_cap"])
def test_gradients_in_low_precision(name: str, dtype: torch.dtype, gradient: str) -> None:
    """At most twice the larger error of two yardsticks, and one rounding unit, as for the other backends.

    The yardstick without the rows is plain FlexAttention; with them, `scaled_dot_product_attention` and then the rows.
    """
    inputs = [x.requires_grad_() for x in tensors(49, 49, 24, 24, dtype)]
    wide = [x.detach().double().requires_grad_() for x in inputs]
    rows = attention_rows(*wide, additive(name, *wide[:2]))
    weight = torch.randn(2, 4, 49, 24).to(dtype)

    def errors(out: Tensor, exact: Tensor) -> list[float]:
        actual = torch.autograd.grad((out * weight).sum(), inputs)
        wanted = torch.autograd.grad((exact * weight.double()).sum(), wide, retain_graph=True)
        return [relative_error(a.double(), w) for a, w in zip(actual, wanted, strict=True)]

    options = {**arguments(name, *inputs[:2]), "enable_gqa": True}
    ours = diagonal_product(rows, constant=gradient == "stop")
    mask = additive(name, *inputs[:2])
    composed = preconditioned_attention(*inputs, mask, enable_gqa=True, gradient=gradient, backend="composition")
    yardsticks = zip(errors(flex_attention(*inputs, **options), rows), errors(composed, ours), strict=True)
    allowed = [2 * max(pair) + torch.finfo(dtype).eps for pair in yardsticks]
    actual = errors(attend(*inputs, gradient=gradient, **options), ours)
    assert all(a <= b for a, b in zip(actual, allowed, strict=True)), (actual, allowed)


def saved_bytes(attention, packed: bool) -> int:
    """Distinct storages that attention, head merge and projection keep for a compiled backward pass."""
    qkv = torch.randn(2, 64, 3, 4, 16).permute(2, 0, 3, 1, 4)
    q, k, v = ((x if packed else x.contiguous()).detach().requires_grad_() for x in qkv)
    projection = torch.randn(64, 64, requires_grad=True)
    storages: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    torch.compiler.reset()
    # The backend divides forward and backward pass as Inductor does and runs both without generating code.
    compiled = torch.compile(
        lambda q, k, v: attention(q, k, v).transpose(1, 2).flatten(2) @ projection,
        backend="aot_eager_decomp_partition",
        fullgraph=True,
    )
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = compiled(q, k, v)
    assert out.requires_grad
    return sum(storages.values())


@pytest.mark.usefixtures("training_on_the_cpu")
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("packed", [False, True])
def test_compiled_saves_what_the_docstring_says(packed: bool, gradient: str) -> None:
    plain = saved_bytes(flex_attention, packed)
    ours = saved_bytes(lambda q, k, v: attend(q, k, v, gradient=gradient), packed)
    number_and_flags, row = 4 + 3, 16 * 4
    assert ours - plain <= 2 * 64 * 4 * (number_and_flags + (row if packed else 0))
