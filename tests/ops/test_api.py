import typing

import pytest
import torch

from preconditioned_attention import preconditioned_attention
from preconditioned_attention.config import BACKENDS, Backend
from preconditioned_attention.ops import api


def record(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the backends that compute, as they do."""
    computed: list[str] = []
    for name, backend in api._BACKENDS.items():

        def attend(call, name=name, attend=backend.attend):
            computed.append(name)
            return attend(call)

        monkeypatch.setattr(backend, "attend", attend)
    return computed


def test_every_backend_has_a_name_and_every_name_a_backend() -> None:
    assert set(api._BACKENDS) == set(BACKENDS) - {"auto"}
    assert typing.get_args(Backend) == BACKENDS


@pytest.mark.parametrize("name", sorted(set(BACKENDS) - {"auto"}))
def test_an_explicit_backend_is_the_one_that_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = record(monkeypatch)
    q = torch.randn(1, 2, 3, 4)
    preconditioned_attention(q, q, q, backend=name)
    assert computed == [name]


def test_an_explicit_backend_that_cannot_serve_raises_and_auto_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    computed = record(monkeypatch)
    q = torch.randn(1, 2, 3, 4)
    with pytest.raises(ValueError, match="backend='flash' cannot serve this call: the kernel has no dropout"):
        preconditioned_attention(q, q, q, dropout_p=0.5, backend="flash")
    preconditioned_attention(q, q, q, dropout_p=0.5)
    preconditioned_attention(q, q, q)
    assert computed == ["composition", "flash"]


def test_auto_respects_what_sdpa_kernel_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    computed = record(monkeypatch)
    q = torch.randn(1, 2, 3, 4)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        preconditioned_attention(q, q, q)
        with pytest.raises(ValueError, match="switched off"):
            preconditioned_attention(q, q, q, backend="flash")
    assert computed == ["composition"]
