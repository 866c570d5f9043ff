import pytest
import torch
from timm.models import davit

from preconditioned_attention import PreconditionConfig, precondition_
from preconditioned_attention.conversion.adapters.timm.swaps_davit import WindowAttentionSwap
from tests.helpers.oracle import compare, jitter_

WINDOW = (3, 3)


@pytest.mark.parametrize("mechanism", ["class swap", "pre-hook"])
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "unfused"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("gain", [None, 1.0], ids=["", "gain"])
def test_against_attention_that_normalizes_inside(
    mechanism: str, fused: bool, training: bool, gain: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mechanism == "pre-hook":  # as with a timm that has another forward
        monkeypatch.setitem(WindowAttentionSwap.methods, "forward", "another")
    module = jitter_(davit.WindowAttention(12, WINDOW, 3).double())
    module.train(training)
    module.fused_attn = fused
    proof = compare(module, torch.randn(2, 9, 12, dtype=torch.float64), config=PreconditionConfig(gain=gain))
    assert proof.error <= 1e-10
    assert proof.effect > 1e-3
    (entry,) = proof.report.entries
    assert (entry.mechanism, entry.num_heads, entry.head_dim) == (mechanism, 3, 4)


def test_nothing_more_is_kept_than_in_the_plain_module() -> None:
    plain, ours = davit.WindowAttention(32, (7, 7), 2), davit.WindowAttention(32, (7, 7), 2)
    precondition_(torch.nn.Sequential(ours))
    x = torch.randn(4, 49, 32, requires_grad=True)
    assert kept_bytes(ours, x) == kept_bytes(plain, x)


def kept_bytes(module: torch.nn.Module, x: torch.Tensor) -> int:
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        module(x)
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}.values())


def test_the_installed_forward_is_the_known_one() -> None:
    """Fails when a new timm changes the forward: read it, then renew the replacement and its digest."""
    assert WindowAttentionSwap.is_text_known()
