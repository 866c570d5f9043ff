import pytest
import torch
from torch import nn
from torchvision.models.video import mvit

from preconditioned_attention import precondition_, restore_
from preconditioned_attention.conversion.adapters.torchvision.swaps_mvit import MultiscaleSwap
from tests.helpers.explicit import relative_error
from tests.helpers.torchvision_by_hand import CLIP, check_whole_model, mvit_by_hand, randomize

MULTISCALE = {
    "residual": {"residual_pool": True, "residual_with_cls_embed": True, "rel_pos_embed": True},
    "residual without class": {"residual_pool": True, "residual_with_cls_embed": False, "rel_pos_embed": True},
    "plain": {"residual_pool": False, "residual_with_cls_embed": False, "rel_pos_embed": False},
}
POOLS = {
    "pooled": {"kernel_q": [1, 3, 3], "kernel_kv": [1, 3, 3], "stride_q": [1, 2, 2], "stride_kv": [1, 2, 2]},
    "not pooled": {"kernel_q": [], "kernel_kv": [], "stride_q": [], "stride_kv": []},
}


@pytest.mark.parametrize("pools", POOLS.values(), ids=POOLS.keys())
@pytest.mark.parametrize("options", MULTISCALE.values(), ids=MULTISCALE.keys())
def test_mvit_attention(options: dict, pools: dict) -> None:
    module = randomize(mvit.MultiscaleAttention([2, 4, 4], 12, 18, 3, **pools, **options))
    x = torch.randn(2, 33, 12, dtype=torch.float64)
    (expected, grid), (plain, _) = mvit_by_hand(module, x, (2, 4, 4)), module(x, (2, 4, 4))
    precondition_(module, strict=True)
    actual, actual_grid = module(x, (2, 4, 4))
    assert actual_grid == grid
    assert relative_error(actual, expected) <= 1e-12
    assert relative_error(plain, expected) > 1e-3
    restore_(module)
    assert torch.equal(module(x, (2, 4, 4))[0], plain)


def tiny_mvit(residual: bool) -> nn.Module:
    blocks = [
        mvit.MSBlockConfig(2, 8, 8, [3, 3, 3], [3, 3, 3], [1, 1, 1], [1, 2, 2]),
        mvit.MSBlockConfig(4, 8, 16, [3, 3, 3], [3, 3, 3], [1, 2, 2], [1, 1, 1]),
    ]
    return mvit.MViT(
        (16, 16), 4, blocks, residual, residual_with_cls_embed=residual, rel_pos_embed=residual,
        proj_after_attn=residual, dropout=0.0, stochastic_depth_prob=0.0, num_classes=5,
    )  # fmt: skip


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("residual", [False, True], ids=["mvit_v1", "mvit_v2"])
def test_whole_models(residual: bool, training: bool) -> None:
    check_whole_model(lambda: tiny_mvit(residual), CLIP, training)


def test_the_installed_text_is_the_known_one() -> None:
    """Fails when a new torchvision changes it: read it, then renew the replacement and its digest."""
    assert MultiscaleSwap.is_text_known()
