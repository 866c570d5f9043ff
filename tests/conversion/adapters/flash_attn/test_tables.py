"""flash-attn needs a GPU to be installed: these modules have the same names, attributes and flow, in plain PyTorch."""

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from preconditioned_attention import PreconditionConfig, precondition_, restore_
from tests.helpers.explicit import attention_rows, diagonal_product, relative_error


class SelfAttention(nn.Module):
    def forward(self, qkv: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
        """(B, N, 3, H, d) or, packed, (tokens, 3, H, d) to (..., N, H, d)."""
        if cu_seqlens is None:
            q, k, v = qkv.transpose(1, 3).unbind(dim=2)
            return ((q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1) @ v).transpose(1, 2)
        sequences = qkv.tensor_split(cu_seqlens[1:-1].tolist())
        return torch.cat([self.forward(sequence.unsqueeze(0)).squeeze(0) for sequence in sequences])


class MHA(nn.Module):
    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, embed_dim // num_heads
        self.Wqkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.inner_attn = SelfAttention()
        self.out_proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
        heads = self.inner_attn(self.Wqkv(x).unflatten(-1, (3, -1, self.head_dim)), cu_seqlens)
        return self.out_proj(heads.flatten(-2))


class ParallelMHA(MHA):
    """One process of two: half of the heads, and batch and tokens in one axis on both sides."""

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__(embed_dim, num_heads)
        self.num_heads_per_rank = num_heads // 2
        self.Wqkv = nn.Linear(embed_dim, 3 * embed_dim // 2)
        self.out_proj = nn.Linear(embed_dim // 2, embed_dim)

    def forward(self, x: Tensor, seqlen: int) -> Tensor:
        qkv = self.Wqkv(x).unflatten(0, (-1, seqlen)).unflatten(-1, (3, -1, self.head_dim))
        return self.out_proj(self.inner_attn(qkv).flatten(-2).flatten(0, 1))


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    for cls in (MHA, ParallelMHA, SelfAttention):
        monkeypatch.setattr(cls, "__module__", "flash_attn.modules.mha")


def by_hand(module: nn.Module, x: Tensor) -> Tensor:
    q, k, v = module.Wqkv(x).unflatten(-1, (3, -1, module.head_dim)).transpose(1, 3).unbind(dim=2)
    return module.out_proj(diagonal_product(attention_rows(q, k, v)).transpose(1, 2).flatten(2))


def test_mha_with_batches_and_with_packed_sequences() -> None:
    module, x = MHA(12, 3).double(), torch.randn(2, 5, 12, dtype=torch.float64)
    plain, expected = module(x), by_hand(module, x)
    report = precondition_(module, strict=True)
    assert [(entry.num_heads, entry.head_dim) for entry in report.entries] == [(3, 4)]
    report.verify(x)
    assert relative_error(module(x), expected) <= 1e-12
    assert relative_error(plain, expected) > 1e-3
    packed = module(x.flatten(0, 1), torch.tensor([0, 5, 10]))
    assert relative_error(packed, expected.flatten(0, 1)) <= 1e-12
    restore_(module)
    assert torch.equal(module(x), plain)


def test_parallel_mha_has_a_gain_for_its_own_heads() -> None:
    module, x = ParallelMHA(16, 4).double(), torch.randn(2, 5, 16, dtype=torch.float64)
    bias = module.out_proj.bias
    expected = 2 * (by_hand(module, x) - bias) + bias
    precondition_(module, PreconditionConfig(gain=2.0), strict=True)
    assert module.preconditioner.gain.shape == (2,)
    assert relative_error(module(x.flatten(0, 1), 5), expected.flatten(0, 1)) <= 1e-12
