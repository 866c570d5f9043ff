import typing

import pytest
import torch

from preconditioned_attention.config import BACKENDS, Backend
from preconditioned_attention.ops import api, composition, reference


def test_every_backend_name_computes() -> None:
    assert set(api._BACKENDS) == set(BACKENDS) - {"auto"}
    assert typing.get_args(Backend) == BACKENDS


@pytest.mark.parametrize(("name", "module"), [("composition", composition), ("reference", reference)])
def test_an_explicit_backend_is_the_one_that_runs(name: str, module, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setitem(
        api._BACKENDS, name, lambda *args, **kwargs: calls.append(kwargs) or module.attend(*args, **kwargs)
    )
    q = torch.randn(1, 2, 3, 4)
    options = {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None, "enable_gqa": False}
    api.attend(q, q, q, **options, gradient="full", gain=None, eps=None, backend=name)
    assert len(calls) == 1
