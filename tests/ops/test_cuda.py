import itertools

import pytest
import torch
from torch import Tensor

from preconditioned_attention import preconditioned_attention
from preconditioned_attention.equilibration import default_eps
from preconditioned_attention.ops import Call, api, cuda, cudnn, efficient, flash_cuda
from tests.helpers.budgets import budgets, packed


def call_of(inputs: list[Tensor], options: dict) -> Call:
    q, k, v = inputs
    defaults = {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None, "enable_gqa": False}
    defaults |= {"gradient": "full", "gain": None, "eps": default_eps(q.dtype)}
    return Call(q=q, k=k, v=v, **defaults | options)


def call(device: str, **options) -> Call:
    return call_of([torch.empty(1, 2, 3, 8, device=device, dtype=torch.float16)] * 3, options)


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


GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
SHAPES = [(7, 24), (49, 48), (197, 64), (49, 80), (7, 128), (49, 256), (1000, 64)]


def masked(kind: str, length: int, dtype: torch.dtype) -> tuple[dict, Tensor | None]:
    """Options of the call, and the mask as the float64 reference takes it."""
    added = torch.randn(length, length, device="cuda").to(dtype)
    boolean = torch.rand(length, length, device="cuda") > 0.3
    return {
        "none": ({}, None),
        "causal": ({"is_causal": True}, torch.ones(length, length, dtype=torch.bool, device="cuda").tril()),
        "boolean": ({"attn_mask": boolean}, boolean),
        "float": ({"attn_mask": added}, added.double()),
        "learned": ({"attn_mask": added.clone().requires_grad_()}, added.double()),
    }[kind]


@GPU
@pytest.mark.parametrize(("length", "d"), SHAPES)
@pytest.mark.parametrize("backend", ["auto", "flash", "efficient", "cudnn"])
def test_error_budget(backend: str, length: int, d: int) -> None:
    """On a GPU: every kernel that serves the call. What a kernel refuses is refused with a reason."""
    dtypes, gradients = (torch.float32, torch.bfloat16, torch.float16), ("full", "stop")
    kinds = ("none", "causal", "boolean", "float", "learned")
    for dtype, gradient, kind in itertools.product(dtypes, gradients, kinds):
        inputs = packed(1, 2, length, d, dtype, "cuda")
        weight = torch.randn(1, 2, length, d, dtype=torch.float64, device="cuda").to(dtype).double()
        options, exact_mask = masked(kind, length, dtype)
        if backend != "auto" and api._BACKENDS.get(backend, flash_cuda).refusal(call_of(inputs, options)):
            with pytest.raises(ValueError, match="cannot serve this call: "):
                preconditioned_attention(*inputs, **options, gradient=gradient, backend=backend)
            continue
        for error, allowed in budgets(inputs, weight, exact_mask, gradient, backend, **options):
            assert error <= allowed, (dtype, gradient, kind)


@GPU
@pytest.mark.parametrize("gradient", ["full", "stop"])
def test_the_gradient_of_a_bias(gradient: str) -> None:
    q, k, v = packed(2, 3, 33, 32, torch.float32, "cuda")
    bias = torch.randn(3, 33, 33, device="cuda", requires_grad=True)
    grads = []
    for backend in ("efficient", "reference"):
        out = preconditioned_attention(q, k, v, bias[None], gradient=gradient, backend=backend)
        grads.append(torch.autograd.grad(out.cos().sum(), bias)[0])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-3, atol=1e-4)
