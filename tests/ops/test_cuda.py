import pytest
import torch

from preconditioned_attention.equilibration import default_eps
from preconditioned_attention.ops import Call, cuda, cudnn, efficient, flash_cuda


def call(device: str, **options) -> Call:
    q = torch.empty(1, 2, 3, 8, device=device, dtype=torch.float16)
    defaults = {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None, "enable_gqa": False}
    defaults |= {"gradient": "full", "gain": None, "eps": default_eps(q.dtype)}
    return Call(q=q, k=q, v=q, **defaults | options)


@pytest.mark.parametrize("backend", [flash_cuda, efficient, cudnn])
def test_refuses_other_devices(backend) -> None:
    assert "must be on cuda" in backend.refusal(call("cpu"))


def test_cudnn_refuses_masks_that_it_would_get_wrong() -> None:
    mask = torch.zeros(3, 3)
    assert "not zero" in cudnn.refusal(call("cpu", attn_mask=mask > 0))
    assert "no gradient" in cudnn.refusal(call("cpu", attn_mask=mask.clone().requires_grad_()))


def test_pytorch_has_the_last_word_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer for a kernel is asked with the call's own arguments, and its reasons are passed on."""
    import warnings

    asked = []

    def can_use(params, debug: bool) -> bool:
        asked.append((params.is_causal, params.dropout, params.enable_gqa))
        if debug:
            warnings.warn("the head dimension is odd", stacklevel=1)
        return False

    monkeypatch.setattr(cuda, "common_refusal", lambda call, device: None)
    reason = cuda.kernel_refusal(call("cpu", is_causal=True, dropout_p=0.5, enable_gqa=True), can_use)
    assert reason == "PyTorch's kernel does not serve it; the head dimension is odd"
    assert asked == [(True, 0.5, True)] * 2
    assert cuda.kernel_refusal(call("cpu"), lambda params, debug: True) is None


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
    assert cuda.candidates(call("cpu")) == expected


def test_where_pytorch_finds_nothing_plain_attention_shall_say_so() -> None:
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.CUDNN_ATTENTION):
        assert cuda.candidates(call("cpu")) == ()
