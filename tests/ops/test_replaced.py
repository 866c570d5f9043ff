"""What replaces `scaled_dot_product_attention` replaces it in preconditioned attention, too."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from preconditioned_attention import equilibrate, preconditioned_attention, preconditioned_varlen_attention
from preconditioned_attention.ops.replaced import SDPA, replacement

Q, K, V = torch.randn(3, 2, 4, 7, 8, generator=torch.Generator().manual_seed(0))


def negated(q: Tensor, *others: Any, **options: Any) -> Tensor:
    return SDPA(-q, *others, **options)


EXPECTED = equilibrate(negated(Q, K, V))


class Negating(TorchFunctionMode):
    """As libraries for sequence parallelism of diffusion models do it."""

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (negated if function is SDPA else function)(*args, **(kwargs or {}))


class NegatingTensor(Tensor):
    @classmethod
    def __torch_function__(cls, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is SDPA:
            args = (-args[0], *args[1:])
        return super().__torch_function__(function, types, args, kwargs or {})


def test_a_function_in_its_place(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """As kernel libraries do it. The log says why, once."""
    monkeypatch.setattr("preconditioned_attention.ops.dispatch._logged", set())
    monkeypatch.setattr(F, "scaled_dot_product_attention", negated)
    for backend in ("auto", "auto", "composition"):
        torch.testing.assert_close(preconditioned_attention(Q, K, V, backend=backend), EXPECTED)
    assert caplog.text.count("was replaced by tests.ops.test_replaced.negated") == 1
    for backend in ("flash", "reference"):
        with pytest.raises(
            ValueError, match=r"scaled_dot_product_attention was replaced by .*negated.*Use backend='au"
        ):
            preconditioned_attention(Q, K, V, backend=backend)


def test_packed_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(F, "scaled_dot_product_attention", negated)
    packed = [x[0].transpose(0, 1) for x in (Q, K, V)]
    cu_seq = torch.tensor([0, 7], dtype=torch.int32)
    out = preconditioned_varlen_attention(*packed, cu_seq, cu_seq, 7, 7)
    torch.testing.assert_close(out.transpose(0, 1), EXPECTED[0])
    with pytest.raises(ValueError, match="was replaced by"):
        preconditioned_varlen_attention(*packed, cu_seq, cu_seq, 7, 7, backend="flash")


def test_a_mode() -> None:
    with Negating():
        torch.testing.assert_close(preconditioned_attention(Q, K, V), EXPECTED)
        with pytest.raises(ValueError, match=r"the TorchFunctionMode Negating is active.*Use backend='auto'"):
            preconditioned_attention(Q, K, V, backend="flash")


def test_compiled_outside_and_run_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    attend = torch.compile(lambda q: preconditioned_attention(q, K, V), backend="aot_eager", fullgraph=True)
    plain = preconditioned_attention(Q, K, V)
    torch.testing.assert_close(attend(Q), plain)
    with Negating():
        torch.testing.assert_close(attend(Q), EXPECTED)
    torch.testing.assert_close(attend(Q), plain)
    with monkeypatch.context() as patched:
        patched.setattr(F, "scaled_dot_product_attention", negated)
        torch.testing.assert_close(attend(Q), EXPECTED)


def test_a_class_of_tensors() -> None:
    parts = [x.as_subclass(NegatingTensor) for x in (Q, K, V)]
    torch.testing.assert_close(preconditioned_attention(*parts).as_subclass(Tensor), EXPECTED)


def test_a_default_device_replaces_nothing() -> None:
    with torch.device("cpu"):
        assert replacement() is None
        assert torch.equal(preconditioned_attention(Q, K, V, backend="flash"), preconditioned_attention(Q, K, V))


def test_a_dispatch_mode_sees_the_kernel_of_plain_attention() -> None:
    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kernels.append(function.name())
            return function(*args, **(kwargs or {}))

    seen = []
    for attend in (SDPA, preconditioned_attention):
        kernels: list[str] = []
        q = Q.clone().requires_grad_()
        with Seen():
            attend(q, K, V).sum().backward()
        seen.append([name for name in kernels if "scaled_dot_product" in name])
    assert seen[0] == seen[1]
    assert len(seen[0]) == 2


def test_kernels_that_are_switched_off() -> None:
    with sdpa_kernel(SDPBackend.MATH), pytest.raises(ValueError, match="flash attention is switched off"):
        preconditioned_attention(Q, K, V, backend="flash")
