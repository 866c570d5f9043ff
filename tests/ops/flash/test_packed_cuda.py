import pytest
import torch
from torch import Tensor

from preconditioned_attention.equilibration import default_eps
from preconditioned_attention.ops import AttentionInputs, PackedInputs
from preconditioned_attention.ops.flash.packed_cuda import PACKED_FLASH_CUDA
from tests.helpers.emulated_cuda import SEED, dropout_factors
from tests.helpers.emulated_varlen import emulated_varlen, spans
from tests.helpers.explicit import diagonal_product, relative_error
from tests.helpers.ragged import KEYS, QUERIES, explicit_ragged, ragged


def packed(qkv: list[Tensor], starts: list[Tensor], **options) -> PackedInputs:
    q, k, v = qkv
    defaults = {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None, "enable_gqa": True}
    defaults |= {"gradient": "full", "gain": None, "eps": default_eps(q.dtype)}
    call = AttentionInputs(q=q, k=k, v=v, **defaults | options)
    return PackedInputs(inputs=call, cu_seq_q=starts[0], cu_seq_k=starts[1], max_q=max(QUERIES), max_k=max(KEYS))


@pytest.mark.parametrize("d", [8, 12], ids=["as it is", "filled up"])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("is_causal", [False, True], ids=["whole", "causal"])
@pytest.mark.parametrize("gradient", ["full", "stop"])
def test_every_sequence_as_if_it_were_alone(gradient: str, is_causal: bool, scale: float | None, d: int) -> None:
    """The emulated backward operator forms no softmax: the gradients are right only if `lambda` and `dout` are."""
    qkv, starts = ragged(d=d)
    gain = torch.randn(4, dtype=torch.float64, requires_grad=True)
    options = {"is_causal": is_causal, "scale": scale, "gradient": gradient, "gain": gain}
    expected = explicit_ragged(*qkv, *starts, **options)
    weight = torch.randn_like(expected)
    with emulated_varlen():
        out = PACKED_FLASH_CUDA.attend(packed(qkv, starts, **options))
        grads = torch.autograd.grad((out * weight).sum(), (*qkv, gain))
    assert relative_error(out, expected) <= 1e-14
    exact = torch.autograd.grad((expected * weight).sum(), (*qkv, gain))
    for actual, wanted in zip(grads, exact, strict=True):
        assert relative_error(actual, wanted) <= 1e-12


@pytest.mark.parametrize("gradient", ["full", "stop"])
def test_dropout(gradient: str) -> None:
    """The kernel draws its mask again on the way back, from the state that it gave."""
    qkv, starts = ragged(shared=4)
    q, k, v = qkv
    rows = []
    for mine, theirs in spans(*starts):
        weights = (q[mine].transpose(0, 1) @ k[theirs].permute(1, 2, 0) / 8**0.5).softmax(-1)
        factors = dropout_factors(SEED, torch.Size((1, *weights.shape)), 0.5)[0]
        rows.append((weights * factors) @ v[theirs].transpose(0, 1))
    expected = diagonal_product(torch.cat(rows, dim=1), constant=gradient == "stop").transpose(0, 1)
    assert (expected.norm(dim=-1) == 0).any(), "some rows lose all their keys"
    with emulated_varlen():
        out = PACKED_FLASH_CUDA.attend(packed(qkv, starts, dropout_p=0.5, gradient=gradient))
        grads = torch.autograd.grad(out.cos().sum(), qkv)
    assert relative_error(out, expected) <= 1e-14
    for actual, wanted in zip(grads, torch.autograd.grad(expected.cos().sum(), qkv), strict=True):
        assert relative_error(actual, wanted) <= 1e-12


@pytest.mark.parametrize("gradient", ["full", "stop"])
def test_short_rows_in_float16(gradient: str) -> None:
    """Rows above eps and below the floor of `rows`: `lambda` and `dout` are changed together."""
    (q, k, v), starts = ragged(dtype=torch.float16)
    qkv = [q, k, (v.detach() * 1e-3).requires_grad_()]
    exact_inputs = [x.detach().double().requires_grad_() for x in qkv]
    exact = explicit_ragged(*exact_inputs, *starts, gradient=gradient, eps=default_eps(torch.float16))
    weight = torch.randn_like(exact).half() * 1e-2
    with emulated_varlen():
        out = PACKED_FLASH_CUDA.attend(packed(qkv, starts, gradient=gradient))
        grads = torch.autograd.grad((out * weight).sum(), qkv)
    assert relative_error(out.double(), exact) <= 2e-3
    for actual, wanted in zip(grads, torch.autograd.grad((exact * weight.double()).sum(), exact_inputs), strict=True):
        assert relative_error(actual.double(), wanted) <= 1e-2


@pytest.mark.parametrize("gradient", ["full", "stop"])
def test_saves_what_the_plain_kernel_saves(gradient: str) -> None:
    qkv, starts = ragged(dtype=torch.float32)
    kept: list[Tensor] = []

    def pack(x: Tensor) -> Tensor:
        kept.append(x)
        return x

    with emulated_varlen(), torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = PACKED_FLASH_CUDA.attend(packed(qkv, starts, gradient=gradient))
    plain = [*qkv, *starts, out]
    assert {x.data_ptr() for x in plain} <= {x.data_ptr() for x in kept}
    per_row = sum(x.nbytes for x in kept) - sum(x.nbytes for x in plain) - 2 * 8  # less the random state
    assert per_row == out[..., 0].nbytes * (2 if gradient == "stop" else 1)


def test_traces_in_one_graph() -> None:
    qkv, starts = ragged(dtype=torch.float32)

    def attend(q, k, v, cu_seq_q, cu_seq_k):
        return PACKED_FLASH_CUDA.attend(packed([q, k, v], [cu_seq_q, cu_seq_k]))

    with emulated_varlen():
        expected = attend(*qkv, *starts)
        out = torch.compile(attend, fullgraph=True, backend="aot_eager")(*qkv, *starts)
        weight = torch.randn_like(out)
        grads, wanted = (torch.autograd.grad((y * weight).sum(), qkv) for y in (out, expected))
    assert relative_error(out, expected) <= 1e-6
    assert all(relative_error(a, b) <= 1e-5 for a, b in zip(grads, wanted, strict=True))
