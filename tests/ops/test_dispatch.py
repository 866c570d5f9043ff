import itertools
import sys
import typing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import preconditioned_attention as pa
from preconditioned_attention import preconditioned_attention
from preconditioned_attention.config import BACKENDS, BackendName
from preconditioned_attention.ops import AttentionInputs, check_inputs, dispatch
from preconditioned_attention.ops.flash.cpu import FLASH_CPU
from preconditioned_attention.ops.flash.efficient import EFFICIENT

DEFAULTS = {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None, "enable_gqa": False}
DEFAULTS |= {"gradient": "full", "gain": None, "eps": None}


def record(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the backends that compute, as they do."""
    computed: list[str] = []
    for backend in {*dispatch.REGISTRY.values(), *dispatch.ON_CUDA.values()}:
        name = type(backend).__name__

        def attend(inputs, name=name, attend=backend.attend):
            computed.append(name)
            return attend(inputs)

        monkeypatch.setattr(backend, "attend", attend)
    return computed


def test_every_backend_has_a_name_and_every_name_a_backend() -> None:
    assert {*dispatch.REGISTRY, "auto"} == {*dispatch.ON_CUDA, "auto"} == set(BACKENDS)
    assert typing.get_args(BackendName) == BACKENDS


@pytest.mark.parametrize("name", ["flash", "composition", "reference"])
def test_an_explicit_backend_is_the_one_that_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = record(monkeypatch)
    q = torch.randn(1, 2, 3, 4)
    preconditioned_attention(q, q, q, backend=name)
    assert computed == [{"flash": "FlashCPU", "composition": "SdpaThenNormalize", "reference": "Reference"}[name]]


def test_an_explicit_backend_that_cannot_serve_raises_and_auto_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    computed = record(monkeypatch)
    q = torch.randn(1, 2, 3, 4)
    with pytest.raises(ValueError, match="backend='flash' does not support this call: the kernel has no dropout"):
        preconditioned_attention(q, q, q, dropout_p=0.5, backend="flash")
    preconditioned_attention(q, q, q, dropout_p=0.5)
    preconditioned_attention(q, q, q)
    assert computed == ["SdpaThenNormalize", "FlashCPU"]


def test_auto_respects_what_sdpa_kernel_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    computed = record(monkeypatch)
    q = torch.randn(1, 2, 3, 4)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        preconditioned_attention(q, q, q)
        with pytest.raises(ValueError, match="switched off"):
            preconditioned_attention(q, q, q, backend="flash")
    assert computed == ["SdpaThenNormalize"]


@pytest.mark.parametrize("name", ["efficient", "cudnn"])
def test_a_kernel_of_another_device_raises(name: str) -> None:
    q = torch.randn(1, 2, 3, 4)
    with pytest.raises(ValueError, match=f"backend='{name}' does not support this call: q, k and v must be on cuda"):
        preconditioned_attention(q, q, q, backend=name)


def test_auto_says_once_why_it_takes_the_long_way(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dispatch, "_logged", set())
    q = torch.randn(1, 2, 3, 4)
    for _ in range(2):
        preconditioned_attention(q, q, q, dropout_p=0.5)
        preconditioned_attention(q, q, q)
    preconditioned_attention(q, q, q, dropout_p=0.5, backend="composition")
    assert [record.message.partition(": ")[2] for record in caplog.records] == ["flash: the kernel has no dropout"]


def test_a_trace_says_it_too(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(dispatch, "_logged", set())
    q = torch.randn(1, 2, 3, 4)
    torch.compiler.reset()
    torch.compile(lambda x: preconditioned_attention(x, x, x, dropout_p=0.5), fullgraph=True, backend="eager")(q)
    assert "no dropout" in caplog.text


def test_on_a_gpu_the_candidates_are_tried_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first that has nothing against the call computes it; here every tensor says that it is on a GPU."""
    computed = []
    x = torch.randn(1, 2, 3, 8)
    call = AttentionInputs(
        q=x, k=x, v=x, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False, gradient="full",
        gain=None, eps=1e-12,
    )  # fmt: skip
    monkeypatch.setattr(dispatch, "_candidates", lambda inputs: ("cudnn", "flash", "efficient"))
    monkeypatch.setattr(dispatch, "_registry", lambda inputs: dispatch.ON_CUDA)
    monkeypatch.setattr(EFFICIENT, "unsupported_reason", lambda inputs: None)
    monkeypatch.setattr(EFFICIENT, "attend", computed.append)
    dispatch._by_name(call, "auto")
    assert computed == [call]


def cpu_inputs(**options) -> AttentionInputs:
    x = torch.empty(1, 2, 3, 8, dtype=torch.float16)
    defaults = {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None, "enable_gqa": False}
    return AttentionInputs(q=x, k=x, v=x, gradient="full", gain=None, eps=2.0**-14, **defaults | options)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("FLASH_ATTENTION", ("flash", "efficient")),
        ("EFFICIENT_ATTENTION", ("efficient", "flash")),
        ("CUDNN_ATTENTION", ("cudnn", "flash", "efficient")),
        ("MATH", ()),
    ],
)
def test_candidates_come_in_the_order_of_pytorch(choice: str, expected: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    value = getattr(torch.nn.attention.SDPBackend, choice).value
    monkeypatch.setattr(torch, "_fused_sdp_choice", lambda *args, **options: value)
    assert dispatch._cuda_candidates(cpu_inputs()) == expected


def test_where_pytorch_finds_nothing_plain_attention_shall_say_so() -> None:
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.CUDNN_ATTENTION):
        assert dispatch._cuda_candidates(cpu_inputs()) == ()


def test_plain_tensors_and_subclasses_without_parts_go_straight_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Named(Tensor):
        pass

    calls = []
    monkeypatch.setattr(dispatch, "_by_name", lambda inputs, backend: calls.append((inputs, backend)))
    x = torch.randn(1, 2, 3, 4)
    for q in (x, torch.nn.Parameter(x), x.as_subclass(Named)):
        preconditioned_attention(q, x, x, backend="reference")
        assert calls[-1][0].q is q
        assert calls[-1][1] == "reference"
    assert len(calls) == 3


def test_one_nested_tensor_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "attend_nested", lambda *_: "nested")
    x = torch.nested.nested_tensor([torch.randn(2, 4, 8)], layout=torch.jagged).transpose(1, 2)
    dense = torch.randn(1, 4, 2, 8)
    assert preconditioned_attention(dense, dense, x) == "nested"


X = torch.randn(2, 4, 5, 8)
CALLS = {
    "plain": ((X, X, X), {}, True),
    "of parameters": ((torch.nn.Parameter(X),) * 3, {"gain": torch.nn.Parameter(torch.ones(4))}, True),
    "causal, half": ((X.half(),) * 3, {"is_causal": True, "gradient": "stop", "scale": 2.0}, True),
    "an eps that shows": ((X, X, X), {"eps": 0.1}, False),
    "a mask": ((X, X, X), {"attn_mask": torch.zeros(5, 5)}, False),
    "dropout": ((X, X, X), {"dropout_p": 0.5}, False),
    "another dtype": ((X, X, X.double()), {}, False),
    "other lengths": ((X, X[:, :, :3], X[:, :, :3]), {}, False),
    "three axes": ((X[0], X[0], X[0]), {}, False),
    "no batch": ((X[:0], X[:0], X[:0]), {}, False),
    "no entries": ((X[..., :0], X[..., :0], X[..., :0]), {}, False),
    "strided rows": ((X.mT.contiguous().mT,) * 3, {}, False),
    "a subclass": ((X.as_subclass(type("Named", (Tensor,), {})), X, X), {}, False),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_short_way_is_for_what_the_flash_kernel_supports(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `compute` sends straight to the kernel is what `unsupported_reason` has nothing against."""
    qkv, options, is_short = CALLS[name]
    inputs = check_inputs(*qkv, **{**DEFAULTS, **options})
    monkeypatch.setattr(dispatch, "_by_container", lambda *_: "the long way")
    monkeypatch.setattr(FLASH_CPU, "attend", lambda _: "the short way")
    assert dispatch.compute(inputs, "auto") == ("the short way" if is_short else "the long way")
    assert not is_short or FLASH_CPU.unsupported_reason(inputs) is None


def test_the_short_way_is_for_eager_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = check_inputs(X, X, X, **DEFAULTS)
    monkeypatch.setattr(dispatch, "_by_container", lambda inputs, _: inputs.q + 1)
    monkeypatch.setattr(FLASH_CPU, "attend", lambda inputs: inputs.q + 2)

    def change(x: Tensor) -> float:
        return (dispatch.compute(replace(inputs, q=x, k=x, v=x), "auto") - x).mean()

    assert round(change(X).item()) == 2
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert round(change(X).item()) == 1
    with torch.autocast("cpu"):
        assert round(change(X).item()) == 1
    assert round(torch.func.vmap(change)(X[None]).item()) == 1
    for pre_dispatch in (False, True):
        assert "2" not in make_fx(change, pre_dispatch=pre_dispatch)(X).code.partition("add")[2][:60]
    assert round(torch.jit.trace(change, X)(X).item()) == 1
    assert round(torch.compile(change, backend="eager", fullgraph=True)(X).item()) == 1


def walk(call: Callable[[], object]) -> list[tuple[str, str]]:
    """File and name of every function of this package that runs in ``call``, in order."""
    root, entered = str(Path(pa.__file__).parent), []

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(root):
            entered.append((frame.f_code.co_filename.removeprefix(root), frame.f_code.co_name))

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return entered


def files(entered: list[tuple[str, str]]) -> list[str]:
    """The files in the order in which they are entered."""
    return [file for file, _ in itertools.groupby(file for file, _ in entered)]


@pytest.mark.parametrize("gradient", ["full", "stop"])
def test_the_way_to_the_kernel_and_back_is_short(gradient: str) -> None:
    """Eager on the CPU: at most six functions of ours forward and seven backward, and no file is entered twice.

    Generated code (`__init__` of a dataclass) has no file and does not count.
    """
    q, k, v = (torch.randn(2, 4, 49, 32, requires_grad=True) for _ in range(3))
    out = preconditioned_attention(q, k, v, gradient=gradient)
    weight = torch.randn_like(out)
    for entered, most in (
        (walk(lambda: preconditioned_attention(q, k, v, gradient=gradient)), 6),
        (walk(lambda: out.backward(weight)), 7),
    ):
        assert 0 < len(entered) <= most, entered
        assert len(files(entered)) == len(set(files(entered))), entered
