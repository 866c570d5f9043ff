from itertools import pairwise

import pytest
import torch
from torch import Tensor

from preconditioned_attention import preconditioned_attention
from preconditioned_attention.ops import dispatch
from preconditioned_attention.varlen import preconditioned_varlen_attention
from tests.helpers.explicit import relative_error
from tests.helpers.ragged import KEYS, QUERIES, cumulative, explicit_ragged, ragged

LONGEST = (max(QUERIES), max(KEYS))
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("backend", ["auto", "flash", "composition", "reference"])
@pytest.mark.parametrize("is_causal", [False, True], ids=["whole", "causal"])
@pytest.mark.parametrize("gradient", ["full", "stop"])
def test_every_sequence_as_if_it_were_alone(gradient: str, is_causal: bool, backend: str) -> None:
    qkv, starts = ragged()
    gain = torch.randn(4, dtype=torch.float64, requires_grad=True)
    options = {"is_causal": is_causal, "scale": 0.3, "gradient": gradient, "gain": gain}
    out = preconditioned_varlen_attention(*qkv, *starts, *LONGEST, **options, enable_gqa=True, backend=backend)
    expected = explicit_ragged(*qkv, *starts, **options)
    assert relative_error(out, expected) <= 1e-14
    weight = torch.randn_like(expected)
    grads, exact = (torch.autograd.grad((y * weight).sum(), (*qkv, gain)) for y in (out, expected))
    for actual, wanted in zip(grads, exact, strict=True):
        assert relative_error(actual, wanted) <= 1e-12


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("is_causal", [False, True], ids=["whole", "causal"])
@pytest.mark.parametrize("gradient", ["full", "stop"])
def test_rounds_as_the_dense_function_does(gradient: str, is_causal: bool, dtype: torch.dtype) -> None:
    """The same kernel on the same numbers: equal to the last bit, sequence by sequence."""
    lengths = [5, 1, 64, 33]
    cu_seq = cumulative(lengths)
    qkv = [torch.randn(sum(lengths), 2, 16, dtype=torch.float64).to(dtype).requires_grad_() for _ in range(3)]
    options = {"is_causal": is_causal, "gradient": gradient, "backend": "flash"}
    out = preconditioned_varlen_attention(*qkv, cu_seq, cu_seq, 64, 64, **options)
    parts = [[x[a:b].transpose(0, 1)[None] for x in qkv] for a, b in pairwise(cu_seq.tolist())]
    alone = torch.cat([preconditioned_attention(*part, **options)[0].transpose(0, 1) for part in parts])
    assert torch.equal(out, alone)
    weight = torch.randn_like(out)
    grads, expected = (torch.autograd.grad((y * weight).sum(), qkv) for y in (out, alone))
    assert all(torch.equal(actual, wanted) for actual, wanted in zip(grads, expected, strict=True))


def test_causal_is_aligned_to_the_lower_right() -> None:
    q, kv = torch.randn(1, 2, 8), torch.randn(6, 2, 8)
    starts = cumulative([1]), cumulative([6])
    causal = preconditioned_varlen_attention(q, kv, kv, *starts, 1, 6, is_causal=True)
    assert torch.equal(causal, preconditioned_varlen_attention(q, kv, kv, *starts, 1, 6))  # one query sees the cache


def test_dropout() -> None:
    """Some weights are gone, rows are unit rows or zero, and in every backend that has dropout the mask is random."""
    qkv, starts = ragged()
    q, k, v = (x.float() for x in qkv)
    torch.manual_seed(1)
    out = preconditioned_varlen_attention(q, k, v, *starts, *LONGEST, enable_gqa=True, dropout_p=0.6)
    torch.manual_seed(1)
    again = preconditioned_varlen_attention(q, k, v, *starts, *LONGEST, enable_gqa=True, dropout_p=0.6)
    whole = preconditioned_varlen_attention(q, k, v, *starts, *LONGEST, enable_gqa=True)
    assert torch.equal(out, again)
    assert not torch.allclose(out, whole)
    norms = out.norm(dim=-1)
    assert ((norms - 1).abs().minimum(norms) <= 1e-6).all()
    with pytest.raises(ValueError, match="backend='flash' does not support this call: the kernel has no dropout"):
        preconditioned_varlen_attention(q, k, v, *starts, *LONGEST, enable_gqa=True, dropout_p=0.6, backend="flash")


def test_auto_takes_the_packed_kernel_where_it_is_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    qkv, starts = ragged()
    one_by_one: list[str] = []

    def attend(packed, backend):
        one_by_one.append(backend)
        return packed.inputs.q

    monkeypatch.setattr(dispatch, "attend_each_sequence", attend)
    for options in ({}, {"eps": 0.1}, {"backend": "reference"}):
        preconditioned_varlen_attention(*qkv, *starts, *LONGEST, enable_gqa=True, **options)
    assert one_by_one == ["auto", "reference"]


@pytest.mark.parametrize("backend", ["auto", "composition"])
@pytest.mark.parametrize("lengths", [[], [0], [0, 0]], ids=str)
def test_no_tokens(lengths: list[int], backend: str) -> None:
    q = torch.zeros(0, 2, 8, requires_grad=True)
    cu_seq = cumulative(lengths)
    out = preconditioned_varlen_attention(q, q, torch.zeros(0, 2, 5), cu_seq, cu_seq, 0, 0, backend=backend)
    assert out.shape == (0, 2, 5)
    assert torch.autograd.grad(out.sum(), q)[0].shape == q.shape


def test_no_keys_at_all() -> None:
    q, k = torch.randn(3, 2, 8, requires_grad=True), torch.zeros(0, 2, 8, requires_grad=True)
    out = preconditioned_varlen_attention(q, k, k, cumulative([3]), cumulative([0]), 3, 0)
    assert torch.equal(out, torch.zeros(3, 2, 8))
    assert torch.equal(torch.autograd.grad(out.sum(), q)[0], torch.zeros(3, 2, 8))


def test_values_of_another_width() -> None:
    (q, k, _), starts = ragged()
    v = torch.randn(len(k), 2, 5, dtype=torch.float64)
    out = preconditioned_varlen_attention(q, k, v, *starts, *LONGEST, enable_gqa=True)
    assert relative_error(out, explicit_ragged(q, k, v, *starts)) <= 1e-14


def saved_bytes(attend) -> int:
    """Distinct storages that attention, head merge and output projection keep for the backward pass."""
    q, k, v = (x.detach().float().requires_grad_() for x in ragged(heads=4, shared=4, d=16)[0])
    projection = torch.nn.Linear(64, 64)
    storages: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = projection(attend(q, k, v).flatten(1))
    assert out.requires_grad
    return sum(storages.values())


@pytest.mark.parametrize("gradient", ["full", "stop"])
def test_saves_inputs_output_and_one_or_two_floats_per_row(gradient: str) -> None:
    starts = ragged()[1]
    saved = saved_bytes(
        lambda q, k, v: preconditioned_varlen_attention(q, k, v, *starts, *LONGEST, gradient=gradient, is_causal=True)
    )
    queries, keys, row = sum(QUERIES), sum(KEYS), 4 * 16 * 4
    positions, weight = 2 * 4 * (len(QUERIES) + 1), 64 * 64 * 4
    plain = 2 * queries * row + 2 * keys * row + queries * 4 * 4 + positions + weight
    assert saved <= plain + (queries * 4 * 4 if gradient == "stop" else 0)


def test_no_uninitialized_memory_reaches_the_results() -> None:
    """PyTorch fills fresh memory with NaN in this mode."""
    qkv, starts = ragged()
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        out = preconditioned_varlen_attention(*qkv, *starts, *LONGEST, enable_gqa=True, is_causal=True)
        grads = torch.autograd.grad(out.square().cos().sum(), qkv)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(x.isfinite().all() for x in (out, *grads))


def test_autocast() -> None:
    qkv, starts = ragged(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = (qkv[0], qkv[1].bfloat16(), qkv[2])
        out = preconditioned_varlen_attention(*mixed, *starts, *LONGEST, enable_gqa=True)
    low = [x.detach().bfloat16() for x in qkv]
    assert torch.equal(out, preconditioned_varlen_attention(*low, *starts, *LONGEST, enable_gqa=True))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"q": torch.randn(1, 16, 4, 8)}, ValueError, r"q must have shape \(tokens, heads, head_dim\)"),
        ({"q": torch.zeros(16, 4, 8, dtype=torch.int32)}, TypeError, "q must be float16"),
        ({"q": torch.zeros(16, 4, 8)}, ValueError, "one dtype"),
        ({"k": torch.zeros(17, 2, 4, dtype=torch.float64)}, ValueError, "one head dimension"),
        ({"v": torch.zeros(16, 2, 8, dtype=torch.float64)}, ValueError, "same tokens and heads"),
        ({"enable_gqa": False}, ValueError, "as many heads as k and v"),
        ({"cu_seq_q": QUERIES}, TypeError, "cu_seq_q must be an int32 tensor"),
        ({"cu_seq_k": cumulative(KEYS).long()}, TypeError, "cu_seq_k must be an int32 tensor"),
        ({"cu_seq_q": cumulative(QUERIES)[None]}, ValueError, r"shape \(sequences \+ 1,\)"),
        ({"cu_seq_q": cumulative(QUERIES)[:0]}, ValueError, r"shape \(sequences \+ 1,\)"),
        ({"cu_seq_q": cumulative(QUERIES).to("meta")}, ValueError, "device of q"),
        ({"cu_seq_k": cumulative([17])}, ValueError, "as many sequences; got 7 and 1"),
        ({"cu_seq_q": cumulative(QUERIES) + 1}, ValueError, "cu_seq_q must start at 0"),
        ({"cu_seq_k": cumulative([3, 2, 7, 0, 0, 4, 2])}, ValueError, "cu_seq_k must start at 0 and end at"),
        ({"cu_seq_q": cumulative([3, -1, 6, 2, 0, 4, 2])}, ValueError, "cu_seq_q must not decrease"),
        ({"max_q": 4}, ValueError, "max_q must be at least the length of the longest sequence, 5; got 4"),
        ({"max_k": 1}, ValueError, "max_k must be at least the length of the longest sequence, 7; got 1"),
        ({"max_q": 5.0}, TypeError, "max_q must be an integer"),
        ({"gradient": "half"}, ValueError, "gradient"),
        ({"backend": "fast"}, ValueError, "backend"),
        ({"eps": -1.0}, ValueError, "eps"),
        ({"gain": torch.ones(2)}, ValueError, r"gain must have shape \(num_heads,\) = \(4,\)"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "composition"])
def test_what_does_not_fit_is_refused(change, error, message: str, backend: str) -> None:
    (q, k, v), (cu_seq_q, cu_seq_k) = ragged()
    given = {"q": q, "k": k, "v": v, "cu_seq_q": cu_seq_q, "cu_seq_k": cu_seq_k, "max_q": 5, "max_k": 7}
    with pytest.raises(error, match=message):
        preconditioned_varlen_attention(**(given | {"enable_gqa": True, "backend": backend} | change))


@pytest.mark.parametrize("gradient", ["full", "stop"])
def test_compiles_to_one_graph_for_all_lengths(gradient: str) -> None:
    def attend(q, k, v, cu_seq):
        return preconditioned_varlen_attention(q, k, v, cu_seq, cu_seq, 6, 6, is_causal=True, gradient=gradient)

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    for lengths in ([3, 4, 5], [6, 2, 4], [6, 0, 5]):
        qkv = [torch.randn(sum(lengths), 2, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
        out, expected = compiled(*qkv, cumulative(lengths)), attend(*qkv, cumulative(lengths))
        assert relative_error(out, expected) <= 1e-14
        weight = torch.randn_like(out)
        grads, wanted = (torch.autograd.grad((y * weight).sum(), qkv) for y in (out, expected))
        assert all(relative_error(a, b) <= 1e-13 for a, b in zip(grads, wanted, strict=True))


def test_exports() -> None:
    class Packed(torch.nn.Module):
        def forward(self, x: Tensor, cu_seq: Tensor) -> Tensor:
            return preconditioned_varlen_attention(x, x, x, cu_seq, cu_seq, 6, 6)

    x = torch.randn(12, 2, 8, dtype=torch.float64)
    program = torch.export.export(Packed(), (x, cumulative([3, 4, 5]))).module()
    assert relative_error(program(x, cumulative([6, 2, 4])), Packed()(x, cumulative([6, 2, 4]))) <= 1e-14
