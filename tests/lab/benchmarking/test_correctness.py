import pytest
import torch

from preconditioned_attention.lab.benchmarking.correctness import WrongResultError, check_result
from preconditioned_attention.ops.flash.cpu import FLASH_CPU
from preconditioned_attention.ops.rows import cpu as cpu_rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("gradient", ["full", "stop"])
def test_a_right_result_passes(dtype: torch.dtype, gradient: str) -> None:
    q, k, v = torch.randn(3, 1, 2, 33, 16).to(dtype)
    check_result(q, k, v, is_causal=True, gradient=gradient, backend="auto")


def test_a_wrong_output_or_gradient_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = torch.randn(3, 1, 2, 33, 16)
    attend = FLASH_CPU.attend
    monkeypatch.setattr(FLASH_CPU, "attend", lambda call: attend(call) * 1.001)
    with pytest.raises(WrongResultError, match="relative error of output"):
        check_result(q, k, v, is_causal=False, gradient="full", backend="flash")
    monkeypatch.setattr(FLASH_CPU, "attend", attend)
    monkeypatch.setattr(cpu_rows, "cotangents", lambda dy, y, norms, *, full: (dy, y))
    with pytest.raises(WrongResultError, match="relative error of dq"):
        check_result(q, k, v, is_causal=False, gradient="full", backend="flash")
