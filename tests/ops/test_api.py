import typing

import pytest
import torch

from preconditioned_attention import preconditioned_attention
from preconditioned_attention.config import BACKENDS, Backend
from preconditioned_attention.ops import Call, api, flash_cpu, flash_cuda


def record(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the modules that compute, as they do."""
    computed: list[str] = []
    for module in {*api._BACKENDS.values(), flash_cpu, flash_cuda}:
        name = module.__name__.rpartition(".")[2]

        def attend(call, name=name, attend=module.attend):
            computed.append(name)
            return attend(call)

        monkeypatch.setattr(module, "attend", attend)
    return computed


def test_every_backend_has_a_name_and_every_name_a_backend() -> None:
    assert {*api._BACKENDS, "flash", "auto"} == set(BACKENDS)
    assert typing.get_args(Backend) == BACKENDS


@pytest.mark.parametrize("name", ["flash", "composition", "reference"])
def test_an_explicit_backend_is_the_one_that_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = record(monkeypatch)
    q = torch.randn(1, 2, 3, 4)
    preconditioned_attention(q, q, q, backend=name)
    assert computed == ["flash_cpu" if name == "flash" else name]


def test_an_explicit_backend_that_cannot_serve_raises_and_auto_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    computed = record(monkeypatch)
    q = torch.randn(1, 2, 3, 4)
    with pytest.raises(ValueError, match="backend='flash' cannot serve this call: the kernel has no dropout"):
        preconditioned_attention(q, q, q, dropout_p=0.5, backend="flash")
    preconditioned_attention(q, q, q, dropout_p=0.5)
    preconditioned_attention(q, q, q)
    assert computed == ["composition", "flash_cpu"]


def test_auto_respects_what_sdpa_kernel_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    computed = record(monkeypatch)
    q = torch.randn(1, 2, 3, 4)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        preconditioned_attention(q, q, q)
        with pytest.raises(ValueError, match="switched off"):
            preconditioned_attention(q, q, q, backend="flash")
    assert computed == ["composition"]


@pytest.mark.parametrize("name", ["efficient", "cudnn"])
def test_a_kernel_of_another_device_raises(name: str) -> None:
    q = torch.randn(1, 2, 3, 4)
    with pytest.raises(ValueError, match=f"backend='{name}' cannot serve this call: q, k and v must be on cuda"):
        preconditioned_attention(q, q, q, backend=name)


def test_auto_says_once_why_it_takes_the_long_way(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(api, "_said", set())
    q = torch.randn(1, 2, 3, 4)
    for _ in range(2):
        preconditioned_attention(q, q, q, dropout_p=0.5)
        preconditioned_attention(q, q, q)
    preconditioned_attention(q, q, q, dropout_p=0.5, backend="composition")
    assert [record.message.partition(": ")[2] for record in caplog.records] == ["flash: the kernel has no dropout"]


def test_a_trace_says_it_too(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(api, "_said", set())
    q = torch.randn(1, 2, 3, 4)
    torch.compiler.reset()
    torch.compile(lambda x: preconditioned_attention(x, x, x, dropout_p=0.5), fullgraph=True, backend="eager")(q)
    assert "no dropout" in caplog.text


def test_on_a_gpu_the_candidates_are_tried_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first that has nothing against the call computes it; here every tensor says that it is on a GPU."""
    computed = []
    x = torch.randn(1, 2, 3, 8)
    call = Call(
        q=x, k=x, v=x, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False, gradient="full",
        gain=None, eps=1e-12,
    )  # fmt: skip
    monkeypatch.setattr(api, "_candidates", lambda call: ("cudnn", "flash", "efficient"))
    monkeypatch.setattr(api, "_module", lambda name, call: {"flash": flash_cuda}.get(name) or api._BACKENDS[name])
    monkeypatch.setattr(api._BACKENDS["efficient"], "refusal", lambda call: None)
    monkeypatch.setattr(api._BACKENDS["efficient"], "attend", computed.append)
    api.attend(call, "auto")
    assert computed == [call]
