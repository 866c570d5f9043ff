import subprocess
import sys
from itertools import product

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import opcheck

from preconditioned_attention import equilibrate
from preconditioned_attention.equilibration import default_eps
from preconditioned_attention.ops import rows
from preconditioned_attention.ops.rows import cpu, operators

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


def attended(layout: str, dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Rows and log-sum-exps as kernels give them: heads last in memory or not, constants padded or not."""
    a = torch.randn(2, 5, 3, 8, dtype=torch.float64).to(device, dtype).transpose(1, 2)
    lse = torch.randn(2, 3, 32, dtype=torch.float64).to(device, torch.promote_types(dtype, torch.float32))[..., :5]
    return (a, lse) if layout == "heads last" else (a.contiguous(), lse.contiguous())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dtype", "layout"), list(product(DTYPES, ["heads last", "contiguous"])), ids=str)
def test_opcheck(dtype: torch.dtype, layout: str, device: str) -> None:
    a, lse = attended(layout, dtype, device)
    opcheck(operators.precondition_rows_, (a, lse, default_eps(dtype)))
    y, norms = equilibrate(a), a.double().norm(dim=-1).to(lse.dtype)
    dy = torch.randn_like(y)[:, :, :1].expand(y.shape)
    opcheck(operators.cotangents, (dy, y, norms, True))
    opcheck(operators.cotangents, (dy, y, norms, False))
    if dtype != torch.float16:
        opcheck(operators.cotangents, (dy, y, None, True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("overflowed", [True, False])
def test_opcheck_of_overflowed_rows(dtype: torch.dtype, overflowed: bool) -> None:
    a, lse = attended("heads last", dtype)
    a *= torch.finfo(dtype).max / 16 if overflowed else 1
    norms = a.to(lse.dtype).square().sum(dim=-1).sqrt()
    assert norms.isinf().any() == overflowed
    opcheck(torch.ops.preconditioned_attention.overflowed_rows_.default, (a, lse, norms, 1e-12))


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck_without_rows(device: str) -> None:
    a, lse = torch.zeros(0, 3, 5, 8, device=device), torch.zeros(0, 3, 5, device=device)
    opcheck(operators.precondition_rows_, (a, lse, 1e-12))
    opcheck(operators.cotangents, (a, a.clone(), lse, False))
    if device == "cpu":
        opcheck(torch.ops.preconditioned_attention.overflowed_rows_.default, (a, lse, lse.clone(), 1e-12))


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_operators_say_what_the_functions_say(dtype: torch.dtype, full: bool) -> None:
    a, lse = attended("heads last", dtype)
    y, new_lse, expected_y, expected_lse = a.clone(), lse.clone(), a.clone(), lse.clone()
    norms = operators.precondition_rows_(y, new_lse, default_eps(dtype))
    expected_norms = rows.precondition_rows_(expected_y, expected_lse, default_eps(dtype))
    torch.testing.assert_close((y, new_lse, norms), (expected_y, expected_lse, expected_norms), rtol=0, atol=0)
    dy = torch.randn_like(y)
    dout, out = rows.cotangents(dy, y, norms, full=full)
    expected = [torch.zeros_like(y) if x is None else x for x in (dout, out) if x is not dy]
    torch.testing.assert_close(operators.cotangents(dy, y, norms, full), expected, rtol=0, atol=0)


def both_ways(a: Tensor, lse: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
    """The operators as an autograd function would use them, on copies."""
    y, constants = a * 2, lse + 1
    norms = operators.precondition_rows_(y, constants, 1e-12)
    dout, nothing = operators.cotangents(dy, y, norms, True)
    (out,) = operators.cotangents(dy, y, norms, False)
    return y, constants, dout + 1, nothing, out


@pytest.mark.parametrize("dynamic", [True, False])
def test_compiled(dynamic: bool) -> None:
    a, lse = attended("heads last", torch.float32)
    dy = torch.randn_like(a)
    torch.testing.assert_close(
        torch.compile(both_ways, fullgraph=True, dynamic=dynamic)(a, lse, dy), both_ways(a, lse, dy)
    )


def test_traced() -> None:
    a, lse = attended("heads last", torch.float32)
    dy = torch.randn_like(a)
    graph = make_fx(both_ways, tracing_mode="fake")(a, lse, dy)
    called = [node.target for node in graph.graph.nodes]
    assert called.count(operators.precondition_rows_) == 1
    assert called.count(operators.cotangents) == 2
    torch.testing.assert_close(graph(a, lse, dy), both_ways(a, lse, dy))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_fake_tensors_need_no_device(device: str) -> None:
    with FakeTensorMode():
        a = torch.empty(2, 5, 3, 8, dtype=torch.bfloat16, device=device).transpose(1, 2)
        lse = torch.empty(2, 3, 5, device=device)
        norms = operators.precondition_rows_(a, lse, 1e-12)
        dout, _ = operators.cotangents(a, a, norms, True)
    assert (norms.shape, norms.dtype, norms.device.type) == ((2, 3, 5), torch.float32, device)
    assert (dout.shape, dout.stride(), dout.dtype, dout.device.type) == (a.shape, a.stride(), a.dtype, device)


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_rows_take_the_operators_where_they_launch_once(
    dtype: torch.dtype, full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same results through the operators, the CPU standing in for a GPU."""
    a, lse = attended("heads last", dtype)
    dy = torch.randn_like(a)

    def results() -> tuple[Tensor, ...]:
        y, constants = a.clone(), lse.clone()
        norms = rows.precondition_rows_(y, constants, default_eps(dtype))
        dout, out = rows.cotangents(dy, y, norms, full=full)
        return y, constants, norms, dout, torch.zeros_like(y) if out is None else out

    expected = results()
    calls = []
    monkeypatch.setattr(operators, "launch_once", lambda x: calls.append(x) or True)
    torch.testing.assert_close(results(), expected, rtol=0, atol=0)
    assert len(calls) == 2


def test_the_cpu_takes_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not operators.launch_once(torch.ones(1, 1, 1, 1))
    with FakeTensorMode():
        assert not operators.launch_once(torch.empty(1, 1, 1, 1, device="cuda"))


def test_the_cpu_needs_no_triton() -> None:
    script = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, preconditioned_attention as pa\n"
        "q = torch.randn(1, 2, 5, 8, requires_grad=True)\n"
        "pa.preconditioned_attention(q, q, q).sum().backward()\n"
        "print(q.grad.isfinite().all().item())"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "True"


def test_gpus_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "triton", None)
    assert operators._kernels.__wrapped__(torch.device("cuda", 0)) is None
    monkeypatch.setattr(operators, "_kernels", lambda device: None)
    a, lse = attended("heads last", torch.float32)
    y, constants = a.clone(), lse.clone()
    norms = operators._precondition_rows_on_gpu(y, constants, 1e-12)
    torch.testing.assert_close(y, equilibrate(a))
    dout, _ = operators._cotangents_on_gpu(a, y, norms, True)
    torch.testing.assert_close(dout, cpu.tangent(a, y))
