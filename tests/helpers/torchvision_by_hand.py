"""torchvision's attention written by hand, one forward per class, and whole models compared with it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models import maxvit
from torchvision.models import swin_transformer as swin
from torchvision.models.video import mvit
from torchvision.models.video import swin_transformer as swin3d

from preconditioned_attention import precondition_, restore_
from tests.helpers.explicit import attention_rows, diagonal_product, relative_error

IMAGE, CLIP = (2, 3, 14, 14), (2, 3, 4, 16, 16)


def randomize(model: nn.Module) -> nn.Module:
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


def check_whole_model(build: Callable[[], nn.Module], shape: tuple[int, ...], training: bool) -> None:
    """Outputs and gradients of a converted model against those of one whose attention is written by hand."""
    model = randomize(build()).train(training)
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
