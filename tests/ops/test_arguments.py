"""Single arguments: wrong ones raise on every backend; what plain attention accepts is accepted."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from preconditioned_attention import (
    preconditioned_attention,
    preconditioned_flex_attention,
    preconditioned_varlen_attention,
)
from tests.helpers.explicit import attention_rows, diagonal_product, relative_error

BACKENDS = ["auto", "flash", "composition", "reference"]
MASK = torch.ones(5, 5)
WRONG = [
    ("dropout_p", -0.1, ValueError, r"dropout_p must be a probability, from 0 to 1; got -0.1"),
    ("dropout_p", 1.5, ValueError, "dropout_p must be a probability, from 0 to 1; got 1.5"),
    ("dropout_p", math.nan, ValueError, "dropout_p must be a probability, from 0 to 1; got nan"),
    ("dropout_p", "0.1", TypeError, "dropout_p must be a number; got '0.1'"),
    ("dropout_p", None, TypeError, "dropout_p must be a number; got None"),
    ("dropout_p", [0.1], TypeError, r"dropout_p must be a number; got \[0.1\]"),
    ("scale", "1", TypeError, r"scale must be a number or None \(1 / sqrt\(head_dim\)\); got '1'"),
    ("scale", 1j, TypeError, "scale must be a number or None .* got 1j"),
    ("scale", [1.0], TypeError, "scale must be a number or None .* got"),
    ("scale", torch.tensor([0.3]), TypeError, r"scale must be a number or a real tensor without axes; got .*\(1,\)"),
    ("scale", torch.tensor(1j), TypeError, "scale must be a number or a real tensor without axes; got torch.complex64"),
    ("scale", torch.tensor(0.3, requires_grad=True), TypeError, "would not get. Multiply q by it and pass scale=1.0"),
    ("is_causal", 1, TypeError, "is_causal must be True or False; got 1"),
    ("is_causal", None, TypeError, "is_causal must be True or False; got None"),
    ("is_causal", torch.tensor(True), TypeError, "is_causal must be True or False; got tensor"),
    ("enable_gqa", "yes", TypeError, "enable_gqa must be True or False; got 'yes'"),
    ("enable_gqa", 1, TypeError, "enable_gqa must be True or False; got 1"),
    ("attn_mask", MASK.tolist(), TypeError, "attn_mask must be a tensor, boolean .* or None; got list"),
    ("attn_mask", MASK.numpy(), TypeError, "attn_mask must be a tensor, .* got ndarray"),
    ("attn_mask", True, TypeError, "attn_mask must be a tensor, .* got bool"),
    ("attn_mask", "causal", TypeError, "attn_mask must be a tensor, .* got str"),
    ("attn_mask", MASK.long(), ValueError, "attn_mask must be boolean .* got torch.int64"),
    ("attn_mask", MASK.byte(), ValueError, "attn_mask must be boolean .* got torch.uint8"),
    ("attn_mask", MASK.cfloat(), ValueError, "attn_mask must be boolean .* got torch.complex64"),
    ("attn_mask", MASK.half(), ValueError, "attn_mask must be boolean .* got torch.float16"),
    ("attn_mask", MASK.to_sparse(), ValueError, "attn_mask must be dense; got layout torch.sparse_coo"),
    ("attn_mask", MASK[0], ValueError, r"attn_mask must broadcast to the scores, \(1, 2, 5, 5\); got shape \(5,\)"),
    ("attn_mask", torch.ones(()), ValueError, r"attn_mask must broadcast to the scores, .* got shape \(\)"),
    ("attn_mask", MASK.expand(1, 1, 1, 5, 5), ValueError, "attn_mask must broadcast to the scores"),
]


def inputs(heads: int = 2, key_heads: int = 2, value_heads: int = 2) -> list[Tensor]:
    shapes = [(1, heads, 5, 8), (1, key_heads, 5, 8), (1, value_heads, 5, 8)]
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "value", "error", "words"), WRONG, ids=lambda x: x if isinstance(x, str) else None)
def test_what_is_refused(name: str, value: object, error: type[Exception], words: str, backend: str) -> None:
    with pytest.raises(error, match=words):
        preconditioned_attention(*inputs(), **{name: value}, backend=backend)
    if words.startswith(("attn_mask must be boolean", "attn_mask must be dense")):
        with pytest.raises((RuntimeError, NotImplementedError)):
            F.scaled_dot_product_attention(*inputs(), **{name: value})


@pytest.mark.parametrize(("name", "value", "error", "words"), [w for w in WRONG if w[0] != "attn_mask"])
def test_packed_and_flexible_attention_refuse_alike(name: str, value: object, error, words: str) -> None:
    x, starts = torch.randn(5, 2, 8), torch.tensor([0, 2, 5], dtype=torch.int32)
    with pytest.raises(error, match=words):
        preconditioned_varlen_attention(x, x, x, starts, starts, 3, 3, **{name: value})
    if name in ("scale", "enable_gqa"):
        with pytest.raises(error, match=words):
            preconditioned_flex_attention(*(y.detach() for y in inputs()), **{name: value})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "scale", [2, True, 0.0, -0.7, np.float32(0.3), np.float64(0.3), np.int64(1), torch.tensor(0.3), torch.tensor(2)]
)
def test_numbers_of_every_kind(scale: object, backend: str) -> None:
    q, k, v = (x.detach().double() for x in inputs())
    out = preconditioned_attention(q, k, v, scale=scale, backend=backend)
    assert relative_error(out, diagonal_product(attention_rows(q, k, v, scale=float(scale)))) <= 1e-12


@pytest.mark.parametrize("dropout_p", [0, False, np.float32(0.0), torch.tensor(0.0)])
def test_no_dropout_of_every_kind(dropout_p: object) -> None:
    for backend in BACKENDS:
        q, k, v = inputs()
        out = preconditioned_attention(q, k, v, dropout_p=dropout_p, backend=backend)
        assert torch.equal(out, preconditioned_attention(q, k, v, backend=backend))
    assert (preconditioned_attention(q, k, v, dropout_p=torch.tensor(1.0)) == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_symbolic_scale(backend: str) -> None:
    torch.compiler.reset()
    compiled = torch.compile(preconditioned_attention, fullgraph=True, backend="aot_eager", dynamic=True)
    for scale in (0.3, 0.5, 0.7):
        q, k, v = inputs()
        expected = diagonal_product(attention_rows(q, k, v, scale=scale))
        assert relative_error(compiled(q, k, v, scale=scale, backend=backend), expected) <= 1e-5


@pytest.mark.parametrize("gradient", ["full", "stop"])
@pytest.mark.parametrize("backend", ["auto", "composition", "reference"])
@pytest.mark.parametrize(("heads", "key_heads", "value_heads"), [(8, 2, 4), (8, 4, 2), (4, 4, 1), (6, 1, 6)])
def test_grouped_keys_and_values_of_different_numbers_of_heads(
    heads: int, key_heads: int, value_heads: int, backend: str, gradient: str
) -> None:
    leaves = [x.detach().double().requires_grad_() for x in inputs(heads, key_heads, value_heads)]
    q, k, v = leaves
    k, v = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (k, v))
    for mask in (None, torch.rand(5, 5) > 0.3):
        out = preconditioned_attention(*leaves, mask, enable_gqa=True, gradient=gradient, backend=backend)
        expected = diagonal_product(attention_rows(q, k, v, mask), constant=gradient == "stop")
        assert relative_error(out, expected) <= 1e-12
        weight = torch.randn_like(out)
        grads = [torch.autograd.grad((y * weight).sum(), leaves, retain_graph=True) for y in (out, expected)]
        assert all(relative_error(a, e) <= 1e-12 for a, e in zip(*grads, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shared", [(3, 4), (8, 4), (4, 3), (3, 3)])
def test_groups_that_do_not_divide(shared: tuple[int, int], backend: str) -> None:
    with pytest.raises(ValueError, match=f"multiple of the key heads and of the value heads; got 4, {shared[0]} and"):
        preconditioned_attention(*inputs(4, *shared), enable_gqa=True, backend=backend)
    with pytest.raises(RuntimeError):
        F.scaled_dot_product_attention(*inputs(4, *shared), enable_gqa=True)


def test_a_distributed_mask_for_plain_tensors() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate

    from tests.helpers.dtensor_worker import connect, free_port

    connect(0, 1, free_port())
    try:
        mask = DTensor.from_local(MASK, init_device_mesh("cpu", (1,)), [Replicate()])
        with pytest.raises(TypeError, match="q must be a DTensor where another tensor of the call is one; got Tensor"):
            preconditioned_attention(*inputs(), mask)
    finally:
        torch.distributed.destroy_process_group()
