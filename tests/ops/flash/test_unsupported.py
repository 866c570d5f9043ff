import warnings

import pytest
import torch

from preconditioned_attention.ops import AttentionInputs
from preconditioned_attention.ops.flash import unsupported
from preconditioned_attention.ops.flash.cuda import FLASH_CUDA
from preconditioned_attention.ops.flash.cudnn import CUDNN
from preconditioned_attention.ops.flash.efficient import EFFICIENT


def call(device: str, **options) -> AttentionInputs:
    x = torch.empty(1, 2, 3, 8, device=device, dtype=torch.float16)
    defaults = {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None, "enable_gqa": False}
    return AttentionInputs(q=x, k=x, v=x, gradient="full", gain=None, eps=2.0**-14, **defaults | options)


@pytest.mark.parametrize("backend", [FLASH_CUDA, EFFICIENT, CUDNN])
def test_refuses_other_devices(backend) -> None:
    assert "must be on cuda" in backend.unsupported_reason(call("cpu"))


def test_cudnn_refuses_masks_that_it_would_get_wrong() -> None:
    mask = torch.zeros(3, 3)
    assert "not zero" in CUDNN.unsupported_reason(call("cpu", attn_mask=mask > 0))
    assert "no gradient" in CUDNN.unsupported_reason(call("cpu", attn_mask=mask.clone().requires_grad_()))


def test_pytorch_has_the_last_word_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer for a kernel is asked with the call's own arguments, and its reasons are passed on."""
    asked = []

    def can_use(params, debug: bool) -> bool:
        asked.append((params.is_causal, params.dropout, params.enable_gqa))
        if debug:
            warnings.warn("the head dimension is odd", stacklevel=1)
        return False

    monkeypatch.setattr(unsupported, "unsupported_on", lambda device, inputs: None)
    reason = unsupported.unsupported_by_cuda_kernel(
        call("cpu", is_causal=True, dropout_p=0.5, enable_gqa=True), can_use
    )
    assert reason == "PyTorch's kernel does not support it; the head dimension is odd"
    assert asked == [(True, 0.5, True)] * 2
    assert unsupported.unsupported_by_cuda_kernel(call("cpu"), lambda params, debug: True) is None
