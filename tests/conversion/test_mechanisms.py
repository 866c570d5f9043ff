import copy

import timm
import torch

from preconditioned_attention import PreconditionConfig, equilibrate, precondition_, restore_
from preconditioned_attention.conversion.mechanisms import RowHook
from preconditioned_attention.layers import Preconditioner


class Subclass(timm.layers.attention.Attention):
    """Goes by pre-hook: the same forward, another class."""


def test_row_hook_splits_by_head_dim_and_applies_the_gain_per_head() -> None:
    c = Preconditioner(PreconditionConfig(gain=1.0), num_heads=3, dtype=torch.float64)
    with torch.no_grad():
        c.gain.copy_(torch.tensor([1.0, 2.0, 3.0]))
    merged = torch.randn(2, 5, 12, dtype=torch.float64)
    out, rest = RowHook(c, head_dim=4)(torch.nn.Identity(), (merged, "rest"))
    assert rest == "rest"
    expected = torch.cat([(h + 1) * equilibrate(merged[..., 4 * h : 4 * h + 4]) for h in range(3)], dim=-1)
    torch.testing.assert_close(out, expected, rtol=1e-14, atol=0)


def test_pre_hook_equals_class_swap_and_comes_off() -> None:
    swapped = timm.layers.attention.Attention(12, 3, qkv_bias=True, gated=True).double().eval()
    hooked = Subclass(12, 3, qkv_bias=True, gated=True).double().eval()
    hooked.load_state_dict(swapped.state_dict())
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    before = hooked(x)
    mechanisms = [precondition_(model).entries[0].mechanism for model in (swapped, hooked)]
    assert mechanisms == ["class swap", "pre-hook"]
    torch.testing.assert_close(hooked(x), swapped(x), rtol=1e-12, atol=1e-14)
    twin = copy.deepcopy(hooked)
    restore_(hooked)
    assert torch.equal(hooked(x), before)
    torch.testing.assert_close(twin(x), swapped(x), rtol=1e-12, atol=1e-14)
    restore_(twin)
    assert torch.equal(twin(x), before)
