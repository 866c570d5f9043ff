import pytest
import torch
from torch import Tensor

from preconditioned_attention import preconditioned_attention
from preconditioned_attention.ops import api, nested


def test_plain_tensors_and_subclasses_without_parts_go_straight_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Named(Tensor):
        pass

    calls = []
    monkeypatch.setattr(api, "attend", lambda call, backend: calls.append((call, backend)))
    x = torch.randn(1, 2, 3, 4)
    for q in (x, torch.nn.Parameter(x), x.as_subclass(Named)):
        preconditioned_attention(q, x, x, backend="reference")
        assert calls[-1][0].q is q
        assert calls[-1][1] == "reference"
    assert len(calls) == 3


def test_one_nested_tensor_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nested, "attend", lambda call, backend: "nested")
    x = torch.nested.nested_tensor([torch.randn(2, 4, 8)], layout=torch.jagged).transpose(1, 2)
    dense = torch.randn(1, 4, 2, 8)
    assert preconditioned_attention(dense, dense, x) == "nested"
