import copy
import itertools
import math

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import maxvit, vision_transformer
from torchvision.models import swin_transformer as swin
from torchvision.models.video import mvit
from torchvision.models.video import swin_transformer as swin3d

from preconditioned_attention import PreconditionConfig, precondition_, restore_
from preconditioned_attention.conversion.adapters.torchvision import swaps_swin as adapter
from preconditioned_attention.conversion.mechanisms import text_digest
from tests.helpers.explicit import attention_rows, diagonal_product, relative_error


def randomise(model: nn.Module) -> nn.Module:
    """Away from the zeros that biases, tables and layer scales start at, where a forgotten one would not show."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.double()


def through_identity(
    module: nn.Module, functional, window: list[int], shift: list[int], x: Tensor, **options
) -> Tensor:
    """Upstream's functional with an identity for the projection; then the rows; then the projection.

    What the functional does after its projection (windows back, shift back, crop) moves rows and changes none.
    """
    bias = module.get_relative_position_bias(*([window] if x.dim() == 5 else []))
    eye = torch.eye(x.shape[-1], dtype=x.dtype)
    merged = functional(
        x, module.qkv.weight, eye, bias, window, module.num_heads,
        shift_size=shift, qkv_bias=module.qkv.bias, training=False, **options,
    )  # fmt: skip
    return module.proj(diagonal_product(merged.unflatten(-1, (module.num_heads, -1))).flatten(-2))


def swin_by_hand(module: nn.Module, x: Tensor) -> Tensor:
    return through_identity(
        module, swin.shifted_window_attention, module.window_size, module.shift_size, x,
        logit_scale=getattr(module, "logit_scale", None),
    )  # fmt: skip


def swin3d_by_hand(module: nn.Module, x: Tensor) -> Tensor:
    window, shift = swin3d._get_window_and_shift_size(
        module.shift_size.copy(), list(x.shape[1:-1]), module.window_size.copy()
    )
    return through_identity(module, swin3d.shifted_window_attention_3d, window, shift, x)


def mvit_by_hand(module: nn.Module, x: Tensor, thw: tuple[int, int, int]) -> tuple[Tensor, tuple[int, int, int]]:
    """Upstream's forward in this file's words, with the rows scaled before residual pooling."""
    heads = module.qkv(x).reshape(*x.shape[:2], 3, module.num_heads, module.head_dim)
    q, k, v = (heads[:, :, i].permute(0, 2, 1, 3) for i in range(3))
    grids = {"q": thw, "k": thw}
    if module.pool_q is not None:
        q, grids["q"] = module.pool_q(q, thw)
    if module.pool_k is not None:
        k, grids["k"] = module.pool_k(k, thw)
    if module.pool_v is not None:
        v, _ = module.pool_v(v, thw)
    bias = torch.zeros(*q.shape[:3], k.shape[2], dtype=x.dtype)
    if module.rel_pos_h is not None:
        mvit._add_rel_pos(bias, q, grids["q"], grids["k"], module.rel_pos_h, module.rel_pos_w, module.rel_pos_t)
    rows = diagonal_product(attention_rows(q, k, v, bias))
    if module.residual_pool:
        shortcut = q.clone()
        if not module.residual_with_cls_embed:
            shortcut[:, :, 0] = 0
        rows = rows + shortcut
    return module.project(rows.permute(0, 2, 1, 3).flatten(2)), grids["q"]


def maxvit_by_hand(module: nn.Module, x: Tensor) -> Tensor:
    q, k, v = (
        t.unflatten(-1, (module.n_heads, module.head_dim)).transpose(2, 3) for t in module.to_qkv(x).chunk(3, -1)
    )
    rows = attention_rows(q, k, v, module.get_relative_positional_bias(), scale=module.scale_factor)
    return module.merge(diagonal_product(rows).transpose(2, 3).flatten(3))


def vit_by_hand(module: nn.MultiheadAttention, x: Tensor, *_, need_weights: bool) -> tuple[Tensor, None]:
    assert not need_weights
    qkv = torch.nn.functional.linear(x, module.in_proj_weight, module.in_proj_bias)
    q, k, v = (t.unflatten(-1, (module.num_heads, -1)).transpose(1, 2) for t in qkv.chunk(3, -1))
    return module.out_proj(diagonal_product(attention_rows(q, k, v)).transpose(1, 2).flatten(2)), None


BY_HAND = {
    swin.ShiftedWindowAttention: swin_by_hand,
    swin.ShiftedWindowAttentionV2: swin_by_hand,
    swin3d.ShiftedWindowAttention3d: swin3d_by_hand,
    mvit.MultiscaleAttention: mvit_by_hand,
    maxvit.RelativePositionalMultiHeadAttention: maxvit_by_hand,
    nn.MultiheadAttention: vit_by_hand,
}


class ByHand(nn.Module):
    """An attention whose forward is the one written in this file."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return BY_HAND[type(self.module)](self.module, *args, **kwargs)


def written_by_hand(model: nn.Module) -> nn.Module:
    """A copy of a plain model with every attention of it replaced."""
    model = copy.deepcopy(model)
    for path, module in list(model.named_modules()):
        if type(module) in BY_HAND:
            model.set_submodule(path, ByHand(module))
    return model


WINDOWS_2D = [(6, 6), (7, 5), (3, 9), (2, 2)]  # whole, padded, one axis no wider than its window, smaller than both
WINDOWS_3D = [(4, 6, 6), (3, 7, 5), (2, 6, 6), (1, 2, 2)]


@pytest.mark.parametrize("cls", [swin.ShiftedWindowAttention, swin.ShiftedWindowAttentionV2])
@pytest.mark.parametrize("shift", [[0, 0], [1, 1], [1, 2]], ids=str)
def test_swin_windows(cls: type[nn.Module], shift: list[int]) -> None:
    for options, sizes in itertools.product([{}, {"qkv_bias": False, "proj_bias": False}], WINDOWS_2D):
        module = randomise(cls(12, [3, 3], shift, 3, **options))
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
        module = randomise(swin3d.ShiftedWindowAttention3d(12, [2, 3, 3], shift, 3))
        x = torch.randn(2, *sizes, 12, dtype=torch.float64)
        expected, plain = swin3d_by_hand(module, x), module(x)
        precondition_(module, strict=True)
        assert relative_error(module(x), expected) <= 1e-12
        restore_(module)
        assert torch.equal(module(x), plain)


def test_swin_dropouts_are_on_in_training_only() -> None:
    for options in ({"attention_dropout": 0.5}, {"dropout": 0.5}):
        module = randomise(swin.ShiftedWindowAttention(12, [3, 3], [1, 1], 3, **options))
        precondition_(module)
        x = torch.randn(1, 6, 6, 12, dtype=torch.float64)
        assert not torch.equal(module(x), module(x))
        module.eval()
        assert relative_error(module(x), swin_by_hand(module, x)) <= 1e-12


def test_the_rows_that_are_observed_are_those_of_a_window() -> None:
    module = randomise(swin.ShiftedWindowAttention(12, [3, 3], [1, 1], 3))
    precondition_(module)
    seen = []
    module.preconditioner.observers.append(lambda rows, scaled: seen.append((rows.shape, scaled.norm(dim=-1))))
    module(torch.randn(2, 6, 6, 12, dtype=torch.float64))
    ((shape, norms),) = seen
    assert shape == (2 * 4, 3, 9, 4)
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=1e-12, atol=0)


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
    module = randomise(mvit.MultiscaleAttention([2, 4, 4], 12, 18, 3, **pools, **options))
    x = torch.randn(2, 33, 12, dtype=torch.float64)
    (expected, grid), (plain, _) = mvit_by_hand(module, x, (2, 4, 4)), module(x, (2, 4, 4))
    precondition_(module, strict=True)
    actual, actual_grid = module(x, (2, 4, 4))
    assert actual_grid == grid
    assert relative_error(actual, expected) <= 1e-12
    assert relative_error(plain, expected) > 1e-3
    restore_(module)
    assert torch.equal(module(x, (2, 4, 4))[0], plain)


def tiny_swin(block: type[nn.Module], merging: type[nn.Module]) -> nn.Module:
    return swin.SwinTransformer(
        [2, 2], 8, [2, 2], [2, 4], [3, 3], num_classes=5, stochastic_depth_prob=0.0, block=block,
        downsample_layer=merging,
    )  # fmt: skip


def tiny_mvit(residual: bool) -> nn.Module:
    blocks = [
        mvit.MSBlockConfig(2, 8, 8, [3, 3, 3], [3, 3, 3], [1, 1, 1], [1, 2, 2]),
        mvit.MSBlockConfig(4, 8, 16, [3, 3, 3], [3, 3, 3], [1, 2, 2], [1, 1, 1]),
    ]
    return mvit.MViT(
        (16, 16), 4, blocks, residual, residual_with_cls_embed=residual, rel_pos_embed=residual,
        proj_after_attn=residual, dropout=0.0, stochastic_depth_prob=0.0, num_classes=5,
    )  # fmt: skip


IMAGE, CLIP = (2, 3, 14, 14), (2, 3, 4, 16, 16)
MODELS = {
    "vit": (lambda: vision_transformer.VisionTransformer(14, 7, 2, 3, 12, 24, num_classes=5), IMAGE),
    "swin": (lambda: tiny_swin(swin.SwinTransformerBlock, swin.PatchMerging), IMAGE),
    "swin_v2": (lambda: tiny_swin(swin.SwinTransformerBlockV2, swin.PatchMergingV2), IMAGE),
    "swin3d": (
        lambda: swin3d.SwinTransformer3d([2, 4, 4], 8, [2, 2], [2, 4], [2, 3, 3], 5, stochastic_depth_prob=0.0),
        CLIP,
    ),
    "maxvit": (
        lambda: maxvit.MaxVit((16, 16), 4, 2, [4, 8], [1, 1], 4, 0.0, num_classes=5),
        (2, 3, 16, 16),
    ),
    "mvit_v1": (lambda: tiny_mvit(False), CLIP),
    "mvit_v2": (lambda: tiny_mvit(True), CLIP),
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("build", "shape"), MODELS.values(), ids=MODELS.keys())
def test_whole_models(build, shape: tuple[int, ...], training: bool) -> None:
    model = randomise(build()).train(training)
    reference = written_by_hand(model)
    x = torch.randn(shape, dtype=torch.float64)
    state, plain = copy.deepcopy(model.state_dict()), model(x)
    model.load_state_dict(state)  # batch norm has counted
    report = precondition_(model, strict=True)
    assert len(report.converted) == len(report.entries) == sum(isinstance(m, ByHand) for m in reference.modules())
    out, expected = model(x), reference(x)
    assert relative_error(out, expected) <= 1e-10
    assert relative_error(plain, expected) > 1e-3
    some = [name for name, p in model.named_parameters() if "qkv" in name or "in_proj" in name]
    own, others = dict(model.named_parameters()), dict(reference.named_parameters())
    aliases = {name.replace(".module.", "."): name for name in others}
    grads = torch.autograd.grad(out.square().sum(), [own[name] for name in some])
    wanted = torch.autograd.grad(expected.square().sum(), [others[aliases[name]] for name in some])
    assert max(map(relative_error, grads, wanted)) <= 1e-9
    model.load_state_dict({**model.state_dict(), **state})
    restore_(model)
    assert model.state_dict().keys() == state.keys()
    assert torch.equal(model(x), plain)


def test_stopped_gradients_and_gain() -> None:
    module = randomise(swin.ShiftedWindowAttention(12, [3, 3], [1, 1], 3))
    precondition_(module, PreconditionConfig(gradient="stop", gain=2.0))
    x = torch.randn(1, 6, 6, 12, dtype=torch.float64, requires_grad=True)
    bias = module.proj.bias.detach()
    assert relative_error((module(x) - bias) / 2, swin_by_hand(module, x) - bias) <= 1e-12
    (stopped,) = torch.autograd.grad(module(x).square().sum(), x)
    assert math.isfinite(stopped.norm().item())
    module.preconditioner.config = PreconditionConfig(gradient="full", gain=2.0)
    (full,) = torch.autograd.grad(module(x).square().sum(), x)
    assert relative_error(stopped, full) > 1e-3


NAMES = [
    *("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14", "swin_t", "swin_s", "swin_b"),
    *("swin_v2_t", "swin_v2_s", "swin_v2_b", "swin3d_t", "swin3d_s", "swin3d_b", "maxvit_t", "mvit_v1_b", "mvit_v2_s"),
]


@pytest.mark.parametrize("name", NAMES)
def test_every_model_with_attention_converts_whole(name: str) -> None:
    options = {"input_size": (224, 224)} if name == "maxvit_t" else {}
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None, **options)
    report = precondition_(model, strict=True)
    assert len(report.converted) == len(report.entries) > 0


@pytest.mark.parametrize("function", adapter.KNOWN_TEXTS, ids=lambda f: f.__qualname__)
def test_the_installed_functions_are_the_known_ones(function) -> None:
    """Fails when a new torchvision changes a text: read it, then renew the replacement and its digest."""
    assert text_digest(function) == adapter.KNOWN_TEXTS[function]


def test_another_text_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(adapter.KNOWN_TEXTS, swin.shifted_window_attention, "another text")
    with pytest.raises(ValueError, match="unknown"):
        precondition_(swin.ShiftedWindowAttention(12, [3, 3], [1, 1], 3))
