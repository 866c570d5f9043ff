import pytest
import torch
from timm.models import iformer

from preconditioned_attention import PreconditionConfig, precondition_
from preconditioned_attention.conversion.adapters.timm import swaps_iformer
from tests.helpers.explicit import relative_error
from tests.helpers.oracle import compare, jitter_


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "unfused"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(("window", "ratio"), [(0, 1), (3, 1), (3, 2), (5, 1)])
@pytest.mark.parametrize("gain", [None, 1.0], ids=["", "gain"])
def test_against_attention_that_normalizes_inside(
    window: int, ratio: int, training: bool, fused: bool, gain: float | None
) -> None:
    module = jitter_(iformer.SHMA(12, ratio=ratio, window_size=window).double())
    module.train(training)
    module.fused_attn = fused
    x = torch.randn(2, 12, 5, 4, dtype=torch.float64)
    proof = compare(module, x, config=PreconditionConfig(gain=gain))
    assert proof.error <= 1e-10
    assert proof.effect > 1e-3
    (entry,) = proof.report.entries
    assert (entry.mechanism, entry.num_heads, entry.head_dim) == ("class swap", 1, 12 * ratio)
    assert proof.widths == {entry.head_dim}


def test_fused_convolutions_stay_converted() -> None:
    """timm's reparameterisation puts one convolution in the place of each with its norm."""
    module = jitter_(iformer.SHMA(12, window_size=3).double().eval())
    precondition_(module)
    x = torch.randn(2, 12, 5, 4, dtype=torch.float64)
    before = module(x)
    for name in ("q", "k", "v_gate", "proj"):
        setattr(module, name, getattr(module, name).fuse())
    assert relative_error(module(x), before) <= 1e-10
    assert swaps_iformer.SHMASwap().shape(module).head_dim == 12


def test_the_installed_forward_is_the_known_one() -> None:
    """Fails when a new timm changes the forward: read it, then renew the replacement and its digest."""
    assert swaps_iformer.SHMASwap.is_text_known()
