import itertools
import math

import pytest
import torch
from torch import nn
from torchvision.models import swin_transformer as swin
from torchvision.models.video import swin_transformer as swin3d

from preconditioned_attention import PreconditionConfig, precondition_, restore_
from preconditioned_attention.conversion.adapters.known_text_swap import KnownTextSwap
from preconditioned_attention.conversion.adapters.torchvision.swaps_swin import (
    ShiftedWindow3dSwap,
    ShiftedWindowSwap,
    ShiftedWindowV2Swap,
)
from preconditioned_attention.layers.observation import RowObserver, attach_observer
from tests.helpers.explicit import relative_error
from tests.helpers.torchvision_by_hand import CLIP, IMAGE, check_whole_model, randomize, swin3d_by_hand, swin_by_hand

WINDOWS_2D = [(6, 6), (7, 5), (3, 9), (2, 2)]  # whole, padded, one axis no wider than its window, smaller than both
WINDOWS_3D = [(4, 6, 6), (3, 7, 5), (2, 6, 6), (1, 2, 2)]


@pytest.mark.parametrize("cls", [swin.ShiftedWindowAttention, swin.ShiftedWindowAttentionV2])
@pytest.mark.parametrize("shift", [[0, 0], [1, 1], [1, 2]], ids=str)
def test_swin_windows(cls: type[nn.Module], shift: list[int]) -> None:
    for options, sizes in itertools.product([{}, {"qkv_bias": False, "proj_bias": False}], WINDOWS_2D):
        module = randomize(cls(12, [3, 3], shift, 3, **options))
        x = torch.randn(2, *sizes, 12, dtype=torch.float64)
        expected, plain = swin_by_hand(module, x), module(x)
        precondition_(module, strict=True)
        assert relative_error(module(x), expected) <= 1e-12
        assert relative_error(plain, expected) > 1e-3
        restore_(module)
        assert torch.equal(module(x), plain)


@pytest.mark.parametrize("shift", [[0, 0, 0], [1, 1, 1], [1, 0, 2]], ids=str)
def test_video_swin_windows(shift: list[int]) -> None:
    for sizes in WINDOWS_3D:
        module = randomize(swin3d.ShiftedWindowAttention3d(12, [2, 3, 3], shift, 3))
        x = torch.randn(2, *sizes, 12, dtype=torch.float64)
        expected, plain = swin3d_by_hand(module, x), module(x)
        precondition_(module, strict=True)
        assert relative_error(module(x), expected) <= 1e-12
        restore_(module)
        assert torch.equal(module(x), plain)


def test_swin_dropouts_are_on_in_training_only() -> None:
    for options in ({"attention_dropout": 0.5}, {"dropout": 0.5}):
        module = randomize(swin.ShiftedWindowAttention(12, [3, 3], [1, 1], 3, **options))
        precondition_(module)
        x = torch.randn(1, 6, 6, 12, dtype=torch.float64)
        assert not torch.equal(module(x), module(x))
        module.eval()
        assert relative_error(module(x), swin_by_hand(module, x)) <= 1e-12


def test_the_rows_that_are_observed_are_those_of_a_window() -> None:
    module = randomize(swin.ShiftedWindowAttention(12, [3, 3], [1, 1], 3))
    precondition_(module)
    seen = []
    see = RowObserver(lambda rows, scaled: seen.append((rows.shape, scaled.norm(dim=-1))))
    attach_observer(module.preconditioner, see)
    module(torch.randn(2, 6, 6, 12, dtype=torch.float64))
    ((shape, norms),) = seen
    assert shape == (2 * 4, 3, 9, 4)
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=1e-12, atol=0)


def tiny_swin(block: type[nn.Module], merging: type[nn.Module]) -> nn.Module:
    return swin.SwinTransformer(
        [2, 2], 8, [2, 2], [2, 4], [3, 3], num_classes=5, stochastic_depth_prob=0.0, block=block,
        downsample_layer=merging,
    )  # fmt: skip


MODELS = {
    "swin": (lambda: tiny_swin(swin.SwinTransformerBlock, swin.PatchMerging), IMAGE),
    "swin_v2": (lambda: tiny_swin(swin.SwinTransformerBlockV2, swin.PatchMergingV2), IMAGE),
    "swin3d": (
        lambda: swin3d.SwinTransformer3d([2, 4, 4], 8, [2, 2], [2, 4], [2, 3, 3], 5, stochastic_depth_prob=0.0),
        CLIP,
    ),
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("build", "shape"), MODELS.values(), ids=MODELS.keys())
def test_whole_models(build, shape: tuple[int, ...], training: bool) -> None:
    check_whole_model(build, shape, training)


def test_stopped_gradients_and_gain() -> None:
    module = randomize(swin.ShiftedWindowAttention(12, [3, 3], [1, 1], 3))
    precondition_(module, PreconditionConfig(gradient="stop", gain=2.0))
    x = torch.randn(1, 6, 6, 12, dtype=torch.float64, requires_grad=True)
    bias = module.proj.bias.detach()
    assert relative_error((module(x) - bias) / 2, swin_by_hand(module, x) - bias) <= 1e-12
    (stopped,) = torch.autograd.grad(module(x).square().sum(), x)
    assert math.isfinite(stopped.norm().item())
    module.preconditioner.config = PreconditionConfig(gradient="full", gain=2.0)
    (full,) = torch.autograd.grad(module(x).square().sum(), x)
    assert relative_error(stopped, full) > 1e-3


@pytest.mark.parametrize("swap", [ShiftedWindowSwap, ShiftedWindowV2Swap, ShiftedWindow3dSwap])
def test_the_installed_text_is_the_known_one(swap: type[KnownTextSwap]) -> None:
    """Fails when a new torchvision changes it: read it, then renew the replacement and its digests."""
    assert swap.is_text_known()


def test_another_text_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ShiftedWindowSwap.functions, swin.shifted_window_attention, "another text")
    with pytest.raises(ValueError, match="unknown"):
        precondition_(swin.ShiftedWindowAttention(12, [3, 3], [1, 1], 3))
