"""One small module of every attention class of timm, and one small model; the references that need a definition."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import (
    attention,
    attention2d,
    attention_pool,
    attention_pool2d,
    bottleneck_attn,
    diff_attention,
    global_context,
    halo_attn,
    lambda_layer,
    non_local_attn,
    other_pool,
)
from timm.layers.pos_embed_rel import RelPosBias
from timm.models import (
    beit,
    cait,
    coat,
    convit,
    cpubone,
    crossvit,
    davit,
    edgenext,
    efficientformer,
    efficientvim,
    efficientvit_mit,
    efficientvit_msra,
    eva,
    fastvit,
    gcvit,
    gemma4_vit,
    hiera,
    hieradet_sam2,
    levit,
    lowformer,
    maxxvit,
    metaformer,
    mobilevit,
    mvitv2,
    nest,
    nextvit,
    pvt_v2,
    shvit,
    swiftformer,
    swin_transformer,
    swin_transformer_v2,
    swin_transformer_v2_cr,
    tiny_vit,
    tnt,
    twins,
    visformer,
    vision_transformer,
    vision_transformer_relpos,
    vision_transformer_sam,
    volo,
    xcit,
)
from timm.models.csatv2 import SpatialTransformerBlock
from torch import Tensor, nn

from tests.helpers.explicit import diagonal_product

LN = {"norm_layer": nn.LayerNorm}


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def relative_bias(size: int) -> Callable[..., nn.Module]:
    return functools.partial(RelPosBias, window_size=(size, size))


def inside_the_folded_rows(module: volo.OutlookAttention, x: Tensor) -> Tensor:
    """Outlook attention by its definition: what a token gets from the windows that hold it, summed, then normalized."""
    B, H, W, C = x.shape
    kernel, heads = module.kernel_size, module.num_heads
    h, w = math.ceil(H / module.stride), math.ceil(W / module.stride)
    v = module.unfold(module.v(x).permute(0, 3, 1, 2)).reshape(B, heads, C // heads, kernel**2, h * w)
    scores = module.attn(module.pool(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)) * module.scale
    weights = scores.reshape(B, h * w, heads, kernel**2, kernel**2).softmax(dim=-1)
    windows = torch.einsum("bnhij,bhdjn->bhdin", weights, v).reshape(B * heads, -1, h * w)
    image = F.fold(windows, (H, W), kernel, padding=module.padding, stride=module.stride)
    rows = diagonal_product(image.reshape(B, heads, C // heads, H * W).transpose(-2, -1))
    return module.proj(rows.permute(0, 2, 1, 3).reshape(B, H, W, C))


def inside_the_sum(module: coat.FactorAttnConvRelPosEnc, x: Tensor, size: tuple[int, int]) -> Tensor:
    """CoaT's factorized attention by its definition: with its convolutional position encoding, then normalized."""
    B, N, C = x.shape
    q, k, v = module.qkv(x).reshape(B, N, 3, module.num_heads, -1).permute(2, 0, 3, 1, 4)
    context = torch.einsum("bhnk,bhnv->bhkv", k.softmax(dim=-2), v)
    rows = diagonal_product(module.scale * q @ context + module.crpe(q, v, size=size))
    return module.proj(rows.transpose(1, 2).reshape(B, N, C))


def inside_linear_attention(module: efficientvit_mit.LiteMLA, x: Tensor) -> Tensor:
    """LiteMLA by its definition; upstream's own arithmetic, which is float32."""
    plain = module._attn
    module._attn = lambda q, k, v: diagonal_product(plain(q, k, v))
    return module(x)


def inside_the_lambdas(module: lambda_layer.LambdaLayer, x: Tensor) -> Tensor:
    """Lambda layer by its definition: content and position lambdas of a query, then normalized, then pooled."""
    B, _, H, W = x.shape
    heads, d_k, d_v = module.num_heads, module.dim_qk, module.dim_v
    q, k, v = module.qkv(x).split([heads * d_k, d_k, d_v], dim=1)
    q = module.norm_q(q).reshape(B, heads, d_k, H * W)
    v = module.norm_v(v).reshape(B, d_v, H * W)
    content = torch.einsum("bkm,bvm->bkv", k.reshape(B, d_k, H * W).softmax(dim=-1), v)
    position = module.conv_lambda(v.transpose(1, 2).reshape(B, 1, H, W, d_v)).reshape(B, d_k, H * W, d_v)
    rows = torch.einsum("bhkm,bkv->bhmv", q, content) + torch.einsum("bhkm,bkmv->bhmv", q, position)
    return module.pool(diagonal_product(rows).transpose(-2, -1).reshape(B, heads * d_v, H, W))


def outside_the_cascade(module: efficientvit_msra.CascadedGroupAttention, x: Tensor) -> Tensor:
    """Cascaded group attention by its definition: normalized for the projection, raw for the next head."""
    B, _, H, W = x.shape
    parts = x.chunk(module.num_heads, dim=1)
    given: Tensor | float = 0.0
    outputs = []
    for head, part in enumerate(parts):
        q, k, v = module.qkvs[head](part + given).split([module.key_dim, module.key_dim, module.val_dim], dim=1)
        scores = module.scale * module.dws[head](q).flatten(2).transpose(1, 2) @ k.flatten(2)
        weights = (scores + module.attention_biases[head][module.attention_bias_idxs]).softmax(dim=-1)
        rows = weights @ v.flatten(2).transpose(1, 2)
        given = rows.transpose(1, 2).reshape(B, -1, H, W)
        outputs.append(diagonal_product(rows).transpose(1, 2).reshape(B, -1, H, W))
    return module.proj(torch.cat(outputs, dim=1))


@dataclass(frozen=True)
class Case:
    """An attention module and what it is called with."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Any, ...]]
    reference: Callable[..., Tensor] | None = None


def tokens(*shape: int) -> Callable[[], tuple[Tensor]]:
    return lambda: (rand(2, *shape),)


SEQUENCE, MAP, WINDOW = tokens(9, 12), tokens(12, 4, 4), tokens(3, 3, 12)


def masked_windows() -> tuple[Tensor, Tensor]:
    return rand(4, 9, 12), torch.where(rand(2, 9, 9) > 1, -100.0, 0.0).double()


CASES = {
    "rotary, grouped queries, gate and norms": Case(
        lambda: attention.AttentionRope(
            24, 6, num_kv_heads=2, qkv_fused=False, qk_norm=True, scale_norm=True, gated=True, **LN
        ),
        lambda: (rand(2, 9, 24), rand(8, 8)),
    ),
    "rotary": Case(lambda: attention.AttentionRope(12, 3, num_prefix_tokens=0), lambda: (rand(2, 9, 12), rand(9, 8))),
    "EVA, gate and norm": Case(lambda: eva.EvaAttention(12, 3, gated=True, **LN), lambda: (rand(2, 9, 12), rand(8, 8))),
    "EVA": Case(lambda: eva.EvaAttention(12, 3, qkv_fused=False, scale_norm=False), SEQUENCE),
    "BEiT": Case(lambda: beit.Attention(12, 3, qkv_bias=True, window_size=(2, 2)), tokens(5, 12)),
    "talking heads": Case(lambda: cait.TalkingHeadAttn(12, 3), SEQUENCE),
    "CaiT, class": Case(lambda: cait.ClassAttn(12, 3), SEQUENCE),
    "CrossViT, class": Case(lambda: crossvit.CrossAttention(12, 3), SEQUENCE),
    "ConViT, gated positions": Case(lambda: convit.GPSA(12, 3), SEQUENCE),
    "ConViT": Case(lambda: convit.MHSA(12, 3), SEQUENCE),
    "MaxViT, images": Case(lambda: maxxvit.Attention2d(12, dim_head=4, rel_pos_cls=relative_bias(4)), MAP),
    "MaxViT": Case(lambda: maxxvit.AttentionCl(12, dim_head=4, rel_pos_cls=relative_bias(3)), WINDOW),
    "XCiT": Case(lambda: xcit.XCA(12, 3), SEQUENCE),
    "EdgeNeXt": Case(lambda: edgenext.CrossCovarianceAttn(12, 3), SEQUENCE),
    "DaViT, channels": Case(lambda: davit.ChannelAttention(12, 3), SEQUENCE),
    "DaViT, channels, second version": Case(lambda: davit.ChannelAttentionV2(12, 3), SEQUENCE),
    "DaViT, windows": Case(lambda: davit.WindowAttention(12, (3, 3), 3), SEQUENCE),
    "latent pooling": Case(
        lambda: attention_pool.AttentionPoolLatent(12, num_heads=3, latent_len=2, pool_type="", **LN), SEQUENCE
    ),
    "latent pooling, no projection": Case(
        lambda: attention_pool.AttentionPoolLatent(12, out_features=0, num_heads=3), SEQUENCE
    ),
    "PRR pooling": Case(lambda: attention_pool.AttentionPoolPrr(12, 3, post_norm=True), SEQUENCE),
    "pooling of images": Case(
        lambda: attention_pool2d.AttentionPool2d(12, feat_size=4, out_features=10, num_heads=3), MAP
    ),
    "pooling of images, features": Case(
        lambda: attention_pool2d.AttentionPool2d(12, feat_size=4, num_heads=3, qkv_separate=True, pool_type=""),
        lambda: (rand(2, 12, 4, 4), True),
    ),
    "rotary pooling of images": Case(
        lambda: attention_pool2d.RotAttentionPool2d(12, out_features=10, ref_feat_size=4, num_heads=3), MAP
    ),
    "SimPool, sequence": Case(lambda: other_pool.SimPool1d(12, 3), SEQUENCE),
    "SimPool, image": Case(lambda: other_pool.SimPool2d(12, 3), MAP),
    "LeViT": Case(lambda: levit.Attention(12, 4, 3, attn_ratio=2, resolution=3), SEQUENCE),
    "LeViT, convolutions": Case(lambda: levit.Attention(12, 4, 3, attn_ratio=2, resolution=4, use_conv=True), MAP),
    "LeViT, between stages": Case(
        lambda: levit.AttentionDownsample(12, 10, 4, 3, attn_ratio=2, resolution=4), tokens(16, 12)
    ),
    "LeViT, between stages, convolutions": Case(
        lambda: levit.AttentionDownsample(12, 10, 4, 3, attn_ratio=2, resolution=4, use_conv=True), MAP
    ),
    "Swin": Case(lambda: swin_transformer.WindowAttention(12, 3, window_size=3), masked_windows),
    "Swin, wide heads": Case(lambda: swin_transformer.WindowAttention(12, 3, head_dim=6, window_size=3), SEQUENCE),
    "Swin V2": Case(lambda: swin_transformer_v2.WindowAttention(12, (3, 3), 3), masked_windows),
    "Swin V2 CR": Case(lambda: swin_transformer_v2_cr.WindowMultiHeadAttention(12, 3, (3, 3)), masked_windows),
    "relative positions": Case(
        lambda: vision_transformer_relpos.RelPosAttention(12, 3, qk_norm=True, rel_pos_cls=relative_bias(3)), SEQUENCE
    ),
    "VOLO": Case(lambda: volo.Attention(12, 3), WINDOW),
    "VOLO, class": Case(lambda: volo.ClassAttention(12, 3, head_dim=6), SEQUENCE),
    "VOLO, outlook": Case(lambda: volo.OutlookAttention(12, 3, stride=2), tokens(5, 6, 12), inside_the_folded_rows),
    "CPUBone": Case(lambda: cpubone.ConvAttention(60, att_stride=2, att_kernel=3), tokens(60, 5, 5)),
    "CPUBone, fused projection": Case(
        lambda: cpubone.ConvAttention(60, att_stride=2, att_kernel=3, fuse_out_proj=True), tokens(60, 5, 5)
    ),
    "LowFormer": Case(lambda: lowformer.ConvAttention(60, 1.0, att_stride=2, att_kernel=3), tokens(60, 5, 5)),
    "LowFormer, fused projection": Case(
        lambda: lowformer.ConvAttention(60, 1.0, att_stride=2, att_kernel=3, fuse_out_proj=True), tokens(60, 5, 5)
    ),
    "FastViT": Case(lambda: fastvit.Attention(12, head_dim=4), MAP),
    "halo": Case(
        lambda: halo_attn.HaloAttn(12, stride=2, num_heads=3, dim_head=6, block_size=4, halo_size=1), tokens(12, 8, 8)
    ),
    "halo, average pooling": Case(
        lambda: halo_attn.HaloAttn(12, stride=2, num_heads=3, block_size=4, halo_size=1, avg_down=True),
        tokens(12, 8, 8),
    ),
    "bottleneck": Case(
        lambda: bottleneck_attn.BottleneckAttn(12, feat_size=(4, 4), stride=2, num_heads=3, dim_head=6), MAP
    ),
    "lambda": Case(
        lambda: lambda_layer.LambdaLayer(12, stride=2, num_heads=3, dim_head=6, r=3), MAP, inside_the_lambdas
    ),
    "CoaT": Case(
        lambda: coat.FactorAttnConvRelPosEnc(12, 3, shared_crpe=coat.ConvRelPosEnc(4, 3, {3: 1, 5: 2})),
        lambda: (rand(2, 13, 12), (3, 4)),
        inside_the_sum,
    ),
    "LiteMLA": Case(lambda: efficientvit_mit.LiteMLA(16, 16, dim=4), tokens(16, 4, 4), inside_linear_attention),
    "cascade": Case(
        lambda: efficientvit_msra.CascadedGroupAttention(12, 2, 3, attn_ratio=2, resolution=4, kernels=(5, 3, 3)),
        MAP,
        outside_the_cascade,
    ),
    "Hiera, mask units": Case(
        lambda: hiera.MaskUnitAttention(12, 24, 3, q_stride=4, window_size=2, use_mask_unit_attn=True), tokens(16, 12)
    ),
    "Hiera": Case(lambda: hiera.MaskUnitAttention(12, 24, 3, q_stride=2), tokens(16, 12)),
    "SAM 2": Case(lambda: hieradet_sam2.MultiScaleAttention(12, 24, 3, q_pool=nn.MaxPool2d(2)), tokens(4, 6, 12)),
    "SAM": Case(lambda: vision_transformer_sam.Attention(12, 3, use_rel_pos=True, input_size=(3, 3)), WINDOW),
    "MobileNetV4": Case(
        lambda: attention2d.MultiQueryAttention2d(
            12, 10, num_heads=3, key_dim=4, value_dim=6, query_strides=2, kv_stride=2
        ),
        MAP,
    ),
    "attention of images": Case(lambda: attention2d.Attention2d(12, num_heads=3, head_first=True), MAP),
    "PVT V2": Case(lambda: pvt_v2.Attention(12, 3, sr_ratio=2), lambda: (rand(2, 16, 12), [4, 4])),
    "PVT V2, pooled": Case(lambda: pvt_v2.Attention(12, 3, linear_attn=True), lambda: (rand(2, 16, 12), [4, 4])),
    "NesT": Case(lambda: nest.Attention(12, 3), tokens(2, 5, 12)),
    "Twins": Case(lambda: twins.GlobalSubSampleAttn(12, 3, sr_ratio=2), lambda: (rand(2, 16, 12), (4, 4))),
    "Twins, local": Case(lambda: twins.LocallyGroupedAttn(12, 3, ws=3), lambda: (rand(2, 20, 12), (4, 5))),
    "GCViT": Case(lambda: gcvit.WindowAttentionGlobal(12, 3, (3, 3)), lambda: (rand(4, 9, 12), rand(2, 3, 3, 12))),
    "TinyViT": Case(lambda: tiny_vit.Attention(12, 4, 3, attn_ratio=2, resolution=(3, 3)), SEQUENCE),
    "Gemma 4": Case(
        lambda: gemma4_vit.Gemma4Attention(12, num_heads=4, head_dim=8, num_kv_heads=2, use_clipped_linears=True),
        lambda: (rand(2, 9, 12), rand(2, 9, 8), rand(2, 9, 8)),
    ),
    "MetaFormer": Case(lambda: metaformer.Attention(12, head_dim=4), SEQUENCE),
    "SHViT": Case(lambda: shvit.SHSA(12, 4, 6), MAP),
    "parallel block": Case(lambda: vision_transformer.ParallelScalingBlock(12, 3), SEQUENCE),
    "parallel block, fused projection": Case(
        lambda: vision_transformer.ParallelScalingBlock(12, 3, qk_norm=True, fuse_out_proj=True), SEQUENCE
    ),
    "EfficientFormer": Case(lambda: efficientformer.Attention(12, 4, 3, attn_ratio=2, resolution=3), SEQUENCE),
    "Next-ViT": Case(lambda: nextvit.EfficientAttention(12, head_dim=4, sr_ratio=2), tokens(16, 12)),
    "TNT": Case(lambda: tnt.Attention(12, 6, 3), SEQUENCE),
    "Visformer": Case(lambda: visformer.Attention(12, 3, head_dim_ratio=0.5), MAP),
}

REFUSED = {
    "sub_norm": (
        lambda: diff_attention.DiffAttention(12, 3),
        lambda: vision_transformer.DiffParallelScalingBlock(12, 3),
    ),
    "context vector": (lambda: mobilevit.LinearSelfAttention(12),),
    "additive": (lambda: swiftformer.EfficientAdditiveAttention(12, 12),),
    "rows of one entry": (SpatialTransformerBlock,),
    "einsum": (lambda: attention2d.MultiQueryAttentionV2(12, num_heads=3),),
    "pooled query": (lambda: mvitv2.MultiScaleAttentionPoolFirst(12, 12, (4, 4), 3),),
    "one context vector per image": (lambda: global_context.GlobalContext(12),),
    "bilinear": (lambda: non_local_attn.BilinearAttnTransform(8, 2, 2),),
    "state space": (lambda: efficientvim.HSMSSD(12),),
    "power": (lambda: other_pool.SimPool1d(12, 3, gamma=2.0),),
}

# The smallest model that holds each class whose heads' output is not a matter of definition. Gemma 4 and the second
# version of channel attention come in large models only, which take minutes; they are proved as modules.
MODELS = [
    "test_vit",
    "vit_pe_spatial_tiny_patch16_512",
    "vit_tiny_patch16_dinov3_qkvb",
    "xcit_nano_12_p8_224",
    "test_maxvit",
    "test_vit3",
    "test_coatnet",
    "levit_128s",
    "levit_conv_128s",
    "swinv2_cr_tiny_224",
    "test_vit_relpos",
    "swinv2_tiny_window8_256",
    "crossvit_tiny_240",
    "volo_d1_224",
    "cait_xxs24_224",
    "cpubone_nano",
    "fastvit_mci0",
    "iformer_t",
    "swin_tiny_patch4_window7_224",
    "halonet_h1",
    "davit_tiny",
    "hiera_tiny_224",
    "mvitv2_tiny",
    "mobilenetv4_hybrid_medium_075",
    "beit_base_patch16_224",
    "pvt_v2_b0",
    "eca_botnext26ts_256",
    "lowformer_b0",
    "nest_tiny",
    "twins_svt_small",
    "resnet50_clip",
    "edgenext_xx_small",
    "gcvit_xxtiny",
    "sam2_hiera_tiny",
    "tiny_vit_5m_224",
    "efficientformerv2_s0",
    "caformer_s18",
    "shvit_s1",
    "vit_pwee_patch16_reg1_gap_256",
    "samvit_base_patch16_224",
    "convit_tiny",
    "efficientformer_l1",
    "nextvit_small",
    "tnt_s_legacy_patch16_224",
    "visformer_tiny",
    "csatv2",
    "eva02_base_patch16_clip_224",
    "beit3_base_patch16_224",
]
