import pytest
import torch

from preconditioned_attention.benchmarking import saved_bytes


def test_counts_shared_storage_once() -> None:
    x = torch.randn(10, 10, requires_grad=True)
    assert saved_bytes(lambda: x.exp()) == 400
    assert saved_bytes(lambda: x * x.T) == 400


def test_needs_a_gradient() -> None:
    with pytest.raises(ValueError, match="needs no gradient"):
        saved_bytes(lambda: torch.ones(2))
