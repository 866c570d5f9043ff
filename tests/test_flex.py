import inspect

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from preconditioned_attention.flex import preconditioned_flex_attention
from tests.helpers.explicit import attention_rows, diagonal_product, relative_error


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch.compiler.reset()


def tensors(batch: int = 2, heads: int = 4, kv_heads: int = 4, length: int = 19, keys: int = 19, d: int = 24):
    shapes = [(batch, heads, length, d), (batch, kv_heads, keys, d), (batch, kv_heads, keys, d)]
    return [torch.randn(shape) for shape in shapes]


def one_row_masked(b, h, i, j):
    return (i >= j) & (i != 3)


def allowed(length: int, keys: int) -> Tensor:
    return one_row_masked(0, 0, torch.arange(length)[:, None], torch.arange(keys))


def exact(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None, **options) -> Tensor:
    return diagonal_product(attention_rows(q.double(), k.double(), v.double(), mask, scale), **options)


def test_takes_the_arguments_of_flex_attention_in_their_order() -> None:
    theirs = list(inspect.signature(flex_attention).parameters)
    ours = list(inspect.signature(preconditioned_flex_attention).parameters)
    assert ours[:7] == ["q", "k", "v", *theirs[3:7]]
    assert "kernel_options" in theirs
    assert "kernel_options" in ours


def test_every_option_at_once() -> None:
    q, k, v = tensors(kv_heads=2, length=12, keys=30)
    gain = torch.tensor([1.0, -2.0, 0.0, 0.5])
    mask = create_block_mask(one_row_masked, None, None, 12, 30, device="cpu")
    out = preconditioned_flex_attention(
        q, k, v, lambda s, b, h, i, j: s + 0.1 * j, mask, 0.3, True, kernel_options={"BLOCK_M": 16}, gain=gain
    )
    bias = (0.1 * torch.arange(30)).double().masked_fill(~allowed(12, 30), -torch.inf)
    assert relative_error(out.double(), exact(q, k, v, bias, 0.3, gain=gain.double())) <= 1e-6
    assert out[:, :, 3].count_nonzero() == 0


def test_eps_leaves_short_rows_alone() -> None:
    q, k, v = tensors()
    v[:, :2] *= 1e-3
    rows = flex_attention(q, k, v)
    out = preconditioned_flex_attention(q, k, v, eps=0.01)
    assert torch.equal(out[:, :2], rows[:, :2])
    torch.testing.assert_close(out[:, 2:].norm(dim=-1), torch.ones(2, 2, 19))


def test_autocast_decides_the_dtype_as_in_flex_attention() -> None:
    q, k, v = tensors()
    v *= 1e-6  # below float16's eps, so these rows stay: eps goes by the dtype of the rows
    with torch.autocast("cpu", torch.float16):
        out, rows = preconditioned_flex_attention(q, k, v), flex_attention(q, k, v)
    assert out.dtype == rows.dtype == torch.float16
    assert torch.equal(out, rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", ["mask, shared heads", "soft cap"])
def test_compiled_in_one_graph(case: str, dtype: torch.dtype) -> None:
    q, k, v = (x.to(dtype) for x in tensors(kv_heads=2))
    options = {"enable_gqa": True}
    bias = allowed(19, 19)
    if case == "soft cap":
        options["score_mod"] = lambda s, b, h, i, j: 2 * torch.tanh(s / 2)
        scores = q.double() @ k.double().repeat_interleave(2, dim=1).mT / 24**0.5
        bias = 2 * torch.tanh(scores / 2) - scores
    else:
        options["block_mask"] = create_block_mask(one_row_masked, None, None, 19, 19, device="cpu")
    rows = attention_rows(q.double(), k.double(), v.double(), bias)
    plain = torch.compile(flex_attention, fullgraph=True)(q, k, v, **options)
    out = torch.compile(preconditioned_flex_attention, fullgraph=True)(q, k, v, **options)
    error = relative_error(out.double(), diagonal_product(rows))
    assert error <= 2 * relative_error(plain.double(), rows) + torch.finfo(dtype).eps
    assert out.stride() == plain.stride()
    assert out.dtype == dtype


def test_compiled_for_any_length() -> None:
    compiled = torch.compile(preconditioned_flex_attention, fullgraph=True, dynamic=True)
    for length in (7, 19, 33):
        q, k, v = tensors(length=length, keys=length + 1)
        assert relative_error(compiled(q, k, v).double(), exact(q, k, v)) <= 1e-6


def test_export() -> None:
    q, k, v = tensors()

    class Attention(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return preconditioned_flex_attention(q, k, v, lambda s, b, h, i, j: s - (i - j).abs())

    exported = torch.export.export(Attention(), (q, k, v)).module()
    torch.testing.assert_close(exported(q, k, v), Attention()(q, k, v))  # the formula there, its own derivative here


def test_empty_batch_and_no_queries() -> None:
    q, k, v = tensors()
    assert preconditioned_flex_attention(q[:0], k[:0], v[:0]).shape == (0, 4, 19, 24)
    assert preconditioned_flex_attention(q[:, :, :0], k, v).shape == (2, 4, 0, 24)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"q": [[1.0]]}, TypeError, "q must be a floating-point torch.Tensor; got list"),
        ({"k": torch.ones(2, 4, 19, 24, dtype=torch.int32)}, TypeError, "k must be .* torch.int32"),
        ({"v": torch.ones(4, 19, 24)}, ValueError, r"v must have shape \(B, H, tokens, head_dim\)"),
        ({"q": torch.ones(2, 4, 19, 24).to(torch.float8_e4m3fn)}, TypeError, "q must be float16"),
        ({"gradient": "half"}, ValueError, "gradient must be one of 'full', 'stop'"),
        ({"gain": torch.ones(3)}, ValueError, r"gain must have shape \(num_heads,\) = \(4,\)"),
        ({"eps": -1.0}, ValueError, "eps must be finite and at least 0"),
        ({"k": torch.ones(2, 2, 19, 24)}, ValueError, "enable_gqa"),  # from here on PyTorch's own
        ({"q": torch.ones(2, 4, 19, 23)}, ValueError, "embedding dimension"),
        ({"q": torch.ones(2, 4, 19, 24, requires_grad=True)}, NotImplementedError, "backward on CPU"),
    ],
    ids=str,
)
def test_errors_name_the_argument(change: dict, error: type[Exception], message: str) -> None:
    q, k, v = tensors()
    with pytest.raises(error, match=message):
        preconditioned_flex_attention(**{"q": q, "k": k, "v": v} | change)
