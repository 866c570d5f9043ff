"""Empty sizes that plain attention accepts: shapes and gradients."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses import FakeTensorMode

from preconditioned_attention import (
    equilibrate,
    preconditioned_attention,
    preconditioned_flex_attention,
    preconditioned_varlen_attention,
)
from preconditioned_attention.equilibration import row_norms
from preconditioned_attention.ops import AttentionInputs
from tests.helpers.explicit import relative_error

BACKENDS = ["auto", "flash", "composition", "reference"]
SIZES = {"batch": 2, "heads": 2, "shared": 2, "queries": 3, "keys": 5, "d": 8, "d_v": 8}
EMPTY = [
    *({name: 0} for name in ("batch", "queries", "keys", "d", "d_v", "shared")),
    {"heads": 0, "shared": 0},
    {"heads": 0},
    {"queries": 0, "keys": 0},
    {"d": 0, "d_v": 0},
    {"batch": 0, "heads": 0, "shared": 0, "queries": 0, "keys": 0, "d": 0, "d_v": 0},
]


def inputs(sizes: dict[str, int], device: str = "cpu") -> list[Tensor]:
    s = SIZES | sizes
    shapes = [
        (s["batch"], s["heads"], s["queries"], s["d"]),
        (s["batch"], s["shared"], s["keys"], s["d"]),
        (s["batch"], s["shared"], s["keys"], s["d_v"]),
    ]
    return [torch.randn(shape, device=device, requires_grad=True) for shape in shapes]


def plain_attention(q: Tensor, k: Tensor, v: Tensor, **given: object) -> Tensor:
    """Rows of zeros where there is no key head, as 2.15 has them: there PyTorch 2.11 ends the process."""
    if k.shape[-3] == 0:
        return q.new_zeros(*q.shape[:-1], v.shape[-1])
    return F.scaled_dot_product_attention(q, k, v, **given)


def options(kind: str, q: Tensor, k: Tensor) -> dict:
    mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device)
    return {"plain": {}, "mask": {"attn_mask": mask}, "causal": {"is_causal": True}, "dropout": {"dropout_p": 0.5}}[
        kind
    ]


def check(ours: Callable[..., Tensor], plain: Callable[..., Tensor], leaves: list[Tensor]) -> None:
    """Shape and dtype of plain attention, its rows to unit length, and gradients of the right shapes."""
    out, rows = ours(*leaves), plain(*leaves)
    assert (out.shape, out.dtype) == (rows.shape, rows.dtype)
    assert relative_error(out, F.normalize(rows, dim=-1)) <= 1e-6
    for leaf, grad in zip(leaves, torch.autograd.grad(out.sum(), leaves), strict=True):
        assert grad.shape == leaf.shape
        assert grad.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["plain", "mask", "causal", "dropout"])
@pytest.mark.parametrize("sizes", EMPTY, ids=str)
def test_every_backend(sizes: dict, kind: str, backend: str) -> None:
    leaves = inputs(sizes)
    given = {"enable_gqa": True, **options(kind, *leaves[:2])}
    torch.manual_seed(1)
    if kind == "dropout" and sizes == {"d": 0}:  # rows are drawn
        assert preconditioned_attention(*leaves, **given, backend=backend).shape == (2, 2, 3, 8)
        return
    if kind == "dropout" and sizes == {"batch": 0} and backend == "flash":
        with pytest.raises(ValueError, match="the kernel has no dropout"):
            preconditioned_attention(*leaves, **given, backend=backend)
        return
    for gradient in ("full", "stop"):
        check(
            lambda *x, gradient=gradient: preconditioned_attention(*x, **given, gradient=gradient, backend=backend),
            lambda *x: plain_attention(*x, **given),
            leaves,
        )


@pytest.mark.parametrize("axes", [2, 3, 5])
@pytest.mark.parametrize("sizes", [{"queries": 0}, {"keys": 0}, {"d": 0}, {"d_v": 0}], ids=str)
def test_other_numbers_of_axes(sizes: dict, axes: int) -> None:
    leaves = [x.detach()[None][(0,) * (5 - axes)].requires_grad_() for x in inputs(sizes)]
    check(preconditioned_attention, F.scaled_dot_product_attention, leaves)


@pytest.mark.parametrize(
    ("sizes", "dynamic"),
    [
        *(({"heads": 0, "shared": 0}, False), ({"keys": 0}, False), ({"d": 0}, False), ({"d_v": 0}, False)),
        *(({"queries": 0}, False), ({"queries": 0}, True)),
    ],
    ids=str,
)
def test_compiled(sizes: dict, dynamic: bool) -> None:
    torch.compiler.reset()
    compiled = torch.compile(preconditioned_attention, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    check(
        lambda *x: compiled(*x, enable_gqa=True),
        lambda *x: plain_attention(*x, enable_gqa=True),
        inputs(sizes),
    )


def test_a_compiled_call_meets_empty_sizes_later() -> None:
    torch.compiler.reset()
    compiled = torch.compile(preconditioned_attention, fullgraph=True, backend="aot_eager")
    for sizes in ({}, {"queries": 4}, {"queries": 0}, {"batch": 0}):
        check(compiled, F.scaled_dot_product_attention, inputs(sizes))


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("sizes", [{}, *EMPTY], ids=str)
def test_fake_and_meta_tensors(sizes: dict, device: str) -> None:
    with FakeTensorMode() if device == "cpu" else torch.device("meta"):
        leaves = inputs(sizes, device)
        out = preconditioned_attention(*leaves, enable_gqa=True)
        plain = plain_attention(*leaves, enable_gqa=True)
        assert (out.shape, out.dtype, out.device) == (plain.shape, plain.dtype, plain.device)
        for leaf, grad in zip(leaves, torch.autograd.grad(out.sum(), leaves), strict=True):
            assert grad.shape == leaf.shape


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("queries", "keys", "heads", "d"),
    [
        *(([], [], 2, 8), ([0, 0], [0, 0], 2, 8), ([2, 3], [0, 0], 2, 8), ([0, 0], [2, 3], 2, 8)),
        *(([2, 0], [0, 3], 2, 8), ([2, 3], [2, 3], 0, 8), ([2, 3], [2, 3], 2, 0)),
    ],
    ids=str,
)
def test_packed(queries: list[int], keys: list[int], heads: int, d: int, backend: str) -> None:
    leaves = [torch.randn(sum(n), heads, d, requires_grad=True) for n in (queries, keys, keys)]
    starts = [torch.tensor([0, *n]).cumsum(0).to(torch.int32) for n in (queries, keys)]
    for compiled in (False, True) if backend == "auto" and 0 in (len(queries), sum(keys), heads) else (False,):
        torch.compiler.reset()
        function = preconditioned_varlen_attention
        function = torch.compile(function, backend="aot_eager") if compiled else function
        out = function(*leaves, *starts, 3, 3, is_causal=True, backend=backend)
        assert out.shape == (sum(queries), heads, d)
        grads = torch.autograd.grad(out.sum(), leaves, allow_unused=True, materialize_grads=True)
        assert all(g.shape == x.shape and g.isfinite().all() for g, x in zip(grads, leaves, strict=True))


def test_nested_without_tokens() -> None:
    for lengths, heads in (([0, 0], 2), ([3, 0], 2), ([2, 3], 0)):
        values = torch.randn(sum(lengths), heads, 8, requires_grad=True)
        nested = torch.nested.nested_tensor_from_jagged(values, torch.tensor([0, *lengths]).cumsum(0)).transpose(1, 2)
        out = preconditioned_attention(nested, nested, nested).transpose(1, 2).values()
        assert torch.autograd.grad(out.sum(), values)[0].shape == out.shape == values.shape


@pytest.mark.parametrize("shape", [(0,), (0, 4), (3, 0), (2, 0, 3, 4), (2, 2, 3, 0), (0, 0)], ids=str)
def test_equilibrate(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, requires_grad=True)
    torch.compiler.reset()
    compiled = [torch.compile(equilibrate, fullgraph=True, backend="aot_eager")] if len(shape) == 2 else []
    for function in (equilibrate, *compiled):
        for gradient in ("full", "stop"):
            y = function(x, gradient=gradient)
            assert y.shape == torch.autograd.grad(y.sum(), x)[0].shape == shape
    assert torch.equal(row_norms(x), torch.zeros(shape[:-1]))


def test_flex_attention_takes_what_it_takes_plain() -> None:
    from torch.nn.attention.flex_attention import flex_attention

    for sizes in EMPTY:
        leaves = [x.detach() for x in inputs(sizes)]
        outcomes = []
        for function in (flex_attention, preconditioned_flex_attention):
            try:
                outcomes.append(function(*leaves, enable_gqa=True).shape)
            except Exception as error:
                outcomes.append(type(error))
        assert outcomes[0] == outcomes[1], sizes


def test_what_counts_as_empty() -> None:
    def empty(sizes: dict) -> bool:
        q, k, v = inputs(sizes)
        rest = {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None, "enable_gqa": False}
        return AttentionInputs(q=q, k=k, v=v, **rest, gradient="full", gain=None, eps=1e-12).is_empty()

    assert [name for name in SIZES if not empty({name: 0})] == ["batch"]
    assert not empty({})


@pytest.mark.parametrize(("axis", "backend"), [(0, "auto"), (0, "composition"), (2, "auto"), (2, "reference")])
@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
def test_sizes_that_a_compiler_cannot_know(axis: int, backend: str) -> None:
    """A mask chooses the samples or the tokens: whether there is one is not known while compiling."""
    torch.compiler.reset()

    def attend(x: Tensor, chosen: Tensor) -> Tensor:
        y = x[chosen] if axis == 0 else x[:, :, chosen]
        return preconditioned_attention(y, y.view_as(y), y.view_as(y), is_causal=True, backend=backend)

    x = torch.randn(5, 2, 5, 8, requires_grad=True)
    chosen = torch.tensor([True, False, True, True, False])
    compiled, expected = (f(x, chosen) for f in (torch.compile(attend, fullgraph=True, backend="aot_eager"), attend))
    assert relative_error(compiled, expected) <= 1e-6
    grads = (torch.autograd.grad(y.cos().sum(), x)[0] for y in (compiled, expected))
    assert relative_error(*grads) <= 1e-4
