import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from preconditioned_attention import preconditioned_attention
from preconditioned_attention.ops import AttentionInputs, compute
from tests.helpers.explicit import relative_error
from tests.helpers.ragged import explicit_ragged

LENGTHS, OTHER = [3, 5, 0, 2], [4, 1, 2, 6]


def packed(lengths: list[int], heads: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Tokens end to end, and where the sequences begin."""
    values = torch.randn(sum(lengths), heads, 8, dtype=torch.float64).to(dtype).requires_grad_()
    return values, torch.tensor([0, *lengths]).cumsum(0)


def jagged(values: Tensor, offsets: Tensor) -> Tensor:
    """(B, H, j, d)."""
    return torch.nested.nested_tensor_from_jagged(values, offsets).transpose(1, 2)


def tokens(x: Tensor) -> Tensor:
    return x.transpose(1, 2).values()


@pytest.mark.parametrize("backend", ["auto", "flash", "composition", "reference"])
@pytest.mark.parametrize("kind", ["self", "causal", "cross"])
@pytest.mark.parametrize("gradient", ["full", "stop"])
def test_jagged_every_sequence_as_if_it_were_alone(gradient: str, kind: str, backend: str) -> None:
    q, offsets = packed(LENGTHS, 4)
    k, key_offsets = packed(OTHER if kind == "cross" else LENGTHS, 2)
    key_offsets = key_offsets if kind == "cross" else offsets
    v = torch.randn_like(k).requires_grad_()
    gain = torch.randn(4, dtype=torch.float64, requires_grad=True)
    options = {"is_causal": kind == "causal", "gradient": gradient, "gain": gain, "scale": 0.4}
    expected = explicit_ragged(q, k, v, offsets, key_offsets, **options)
    nested = [jagged(q, offsets), jagged(k, key_offsets), jagged(v, key_offsets)]
    out = preconditioned_attention(*nested, **options, enable_gqa=True, backend=backend)
    assert out.is_nested
    assert out.layout == torch.jagged
    assert out.shape == nested[0].shape  # the same ragged axis, so that it can be added to q
    assert relative_error(tokens(out), expected) <= 1e-14
    weight = torch.randn_like(expected)
    grads, exact = (torch.autograd.grad((y * weight).sum(), (q, k, v, gain)) for y in (tokens(out), expected))
    for actual, wanted in zip(grads, exact, strict=True):
        assert relative_error(actual, wanted) <= 1e-12


def test_the_usual_way_from_a_batch_to_merged_heads() -> None:
    """Project, split, attend, merge, project: nothing in between but what plain attention takes."""
    batch = torch.nested.nested_tensor([torch.randn(n, 16) for n in (3, 5, 2)], layout=torch.jagged)
    projection, output = torch.nn.Linear(16, 48), torch.nn.Linear(16, 16)
    q, k, v = (x.unflatten(-1, [2, 8]).transpose(1, 2) for x in projection(batch).chunk(3, dim=-1))
    ours = preconditioned_attention(q, k, v)
    plain = F.scaled_dot_product_attention(*(x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)))
    torch.testing.assert_close(tokens(ours), F.normalize(tokens(plain), dim=-1))
    merged = output(ours.transpose(1, 2).flatten(-2))
    assert merged.shape == batch.shape
    (merged + batch).values().sum().backward()
    assert projection.weight.grad.isfinite().all()


def test_jagged_with_holes() -> None:
    values, offsets = torch.randn(12, 2, 8), torch.tensor([0, 4, 9, 12])
    holes = torch.nested.nested_tensor_from_jagged(values, offsets, lengths=torch.tensor([3, 5, 1])).transpose(1, 2)
    out = preconditioned_attention(holes, holes, holes)
    for sequence, (begin, end) in zip(out.unbind(), [(0, 3), (4, 9), (9, 10)], strict=True):
        alone = values[begin:end].transpose(0, 1)[None]
        torch.testing.assert_close(sequence[None], preconditioned_attention(alone, alone, alone))


@pytest.mark.parametrize("gradient", ["full", "stop"])
def test_strided(gradient: str) -> None:
    """The older layout; q, k and v of their own lengths."""
    parts = [
        [torch.randn(h, n, 8, dtype=torch.float64, requires_grad=True) for n in lengths]
        for h, lengths in [(4, [3, 5]), (2, [2, 7]), (2, [2, 7])]
    ]
    q, k, v = (torch.nested.as_nested_tensor(part, layout=torch.strided) for part in parts)
    gain = torch.rand(4, dtype=torch.float64)
    options = {"attn_mask": None, "dropout_p": 0.0, "scale": None, "eps": 1e-12}
    call = AttentionInputs(q=q, k=k, v=v, is_causal=True, enable_gqa=True, gradient=gradient, gain=gain, **options)
    out = compute(call, "auto")
    assert out.is_nested
    assert out.layout == torch.strided
    alone = [
        preconditioned_attention(
            *(x[None] for x in part), is_causal=True, enable_gqa=True, gradient=gradient, gain=gain
        )[0]
        for part in zip(*parts, strict=True)
    ]
    for actual, wanted in zip(out.unbind(), alone, strict=True):
        assert torch.equal(actual, wanted)
    inputs = [x for part in parts for x in part]
    grads, wanted = (torch.autograd.grad(sum(x.cos().sum() for x in y), inputs) for y in (out.unbind(), alone))
    assert all(torch.equal(a, b) for a, b in zip(grads, wanted, strict=True))


def test_what_does_not_fit_is_refused() -> None:
    values, offsets = packed(LENGTHS, 4)
    x = jagged(values, offsets)
    other = jagged(*packed(OTHER, 4))
    fewer = jagged(*packed([3, 2], 4))
    dense = torch.randn(4, 4, 3, 8, dtype=torch.float64)
    for arguments, options, message in [
        ((x, dense, x), {}, "nested tensors of one layout; got .*'k': 'not nested'"),
        ((x, x, x), {"attn_mask": torch.zeros(3, 3)}, "attn_mask must be None"),
        ((x, fewer, fewer), {}, "as many sequences; got {'q': 4, 'k': 2, 'v': 2}"),
        ((x, other, x), {}, "nested k and v must have the same lengths"),
        ((x, other, other), {"is_causal": True}, "needs nested q and k of the same lengths"),
        ((x.transpose(1, 2),) * 3, {}, r"q must have its sequences along axis 2.*q.transpose\(1, 2\)"),
        ((x.transpose(1, 2).flatten(-2),) * 3, {}, "q must have four axes"),
        ((x, x, x), {"dropout_p": 0.5, "backend": "flash"}, "the kernel has no dropout"),
    ]:
        with pytest.raises(ValueError, match=message):
            preconditioned_attention(*arguments, **options)


def test_equal_lengths_need_not_come_from_the_same_offsets() -> None:
    values, offsets = packed(LENGTHS, 4)
    q, k, v = (jagged(values, offsets.clone()) for _ in range(3))
    out = preconditioned_attention(q, k, v, is_causal=True)
    expected = explicit_ragged(values, values, values, offsets, offsets, is_causal=True)
    assert relative_error(tokens(out), expected) <= 1e-14


def test_compiles_to_one_graph_for_all_lengths() -> None:
    def attend(values: Tensor, offsets: Tensor) -> Tensor:
        x = jagged(values, offsets)
        return tokens(preconditioned_attention(x, x, x, is_causal=True))

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    for lengths in ([3, 5, 2], [1, 0, 7, 2]):
        values, offsets = packed(lengths, 2)
        out, expected = compiled(values, offsets), attend(values, offsets)
        assert relative_error(out, expected) <= 1e-14
        weight = torch.randn_like(out)
        (grad,), (wanted,) = (torch.autograd.grad((y * weight).sum(), values) for y in (out, expected))
        assert relative_error(grad, wanted) <= 1e-13
