"""Vision: vit-pytorch, MONAI, segment-anything, kornia, open_clip, timm, diffusers, denoising-diffusion-pytorch."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import nn

IMAGES = torch.randn(2, 3, 32, 32)
TOKENS = torch.randn(2, 16, 32)
MAPS = torch.randn(2, 32, 8, 8)
VOLUMES = torch.randn(1, 1, 32, 32, 32)
VIT = {"image_size": 32, "patch_size": 8, "num_classes": 4, "dim": 32, "depth": 1, "heads": 2, "mlp_dim": 32}


def of(name: str, inputs: object, /, *args: Any, **options: Any) -> Callable[[], tuple[nn.Module, object]]:
    """A case: the class ``package.module.Class``, what it is built with, and its inputs."""

    def build() -> tuple[nn.Module, object]:
        module, _, cls = name.rpartition(".")
        return getattr(import_module(module), cls)(*args, **options), inputs

    return build


def vit(file: str, cls: str, inputs: object = IMAGES, /, **options: Any) -> Callable[[], tuple[nn.Module, object]]:
    """A case of vit-pytorch."""
    return of(f"vit_pytorch.{file}.{cls}", inputs, **options)


VIT_PYTORCH = {
    "ViT": vit("vit", "ViT", **VIT),
    "SimpleViT": vit("simple_vit", "SimpleViT", **VIT),
    "ats": vit("ats_vit", "ViT", max_tokens_per_depth=(8,), **VIT),
    "CaiT": vit(
        "cait",
        "CaiT",
        image_size=32,
        patch_size=8,
        num_classes=4,
        dim=32,
        depth=1,
        cls_depth=1,
        heads=2,
        mlp_dim=32,
    ),
    "CCT": vit("cct", "CCT", img_size=32, embedding_dim=32, num_layers=1, num_heads=2, mlp_ratio=1, num_classes=4),
    "CrossViT": vit(
        "cross_vit", "CrossViT", image_size=32, num_classes=4, sm_dim=32, lg_dim=32, sm_patch_size=8, lg_patch_size=16
    ),
    "CrossFormer": vit(
        "crossformer",
        "CrossFormer",
        torch.randn(1, 3, 224, 224),
        num_classes=4,
        dim=(32, 32, 32, 32),
        depth=(1, 1, 1, 1),
    ),
    "CvT": vit(
        "cvt",
        "CvT",
        num_classes=4,
        **{f"s{n}_{key}": value for n in (1, 2, 3) for key, value in {"emb_dim": 16, "depth": 1, "heads": 1}.items()},
    ),
    "DeepViT": vit("deepvit", "DeepViT", **VIT),
    "jet window": of(
        "vit_pytorch.jet_vit.WindowAttention", torch.randn(2, 64, 32), 32, 8, 8, dim_head=16, window_size=4
    ),
    "learnable memory": vit("learnable_memory_vit", "ViT", **VIT),
    "LeViT": vit(
        "levit",
        "LeViT",
        torch.randn(2, 3, 64, 64),
        image_size=64,
        num_classes=4,
        dim=(32, 32),
        depth=(1, 1),
        heads=(2, 2),
        stages=2,
        mlp_mult=2,
    ),
    "MaxViT": vit(
        "max_vit", "MaxViT", torch.randn(1, 3, 64, 64), num_classes=4, dim=16, depth=(1, 1), dim_head=8, window_size=4
    ),
    "MobileViT": vit(
        "mobile_vit",
        "MobileViT",
        torch.randn(1, 3, 64, 64),
        image_size=(64, 64),
        dims=[16, 16, 16],
        channels=[8] * 10 + [16],
        num_classes=4,
    ),
    "NaViT": vit("na_vit", "NaViT", ([[torch.randn(3, 32, 32), torch.randn(3, 16, 32)]],), **VIT),
    "NesT": vit(
        "nest",
        "NesT",
        image_size=32,
        patch_size=4,
        num_classes=4,
        dim=16,
        heads=1,
        num_hierarchies=2,
        block_repeats=(1, 1),
    ),
    "nViT": vit("normalized_vit", "nViT", **VIT),
    "parallel": vit("parallel_vit", "ViT", **VIT),
    "PiT": vit(
        "pit",
        "PiT",
        torch.randn(1, 3, 64, 64),
        image_size=64,
        patch_size=8,
        num_classes=4,
        dim=32,
        depth=(1, 1),
        heads=2,
        mlp_dim=32,
    ),
    "RegionViT": vit(
        "regionvit", "RegionViT", torch.randn(1, 3, 224, 224), dim=(16, 16, 16, 16), depth=(1, 1, 1, 1), num_classes=4
    ),
    "RvT": vit("rvt", "RvT", **VIT),
    "scalable": of("vit_pytorch.scalable_vit.ScalableSelfAttention", MAPS, 32, heads=2),
    "scalable window": of("vit_pytorch.scalable_vit.InteractiveWindowedSelfAttention", MAPS, 32, 4, heads=2),
    "SepViT": of("vit_pytorch.sep_vit.DSSA", MAPS, 32, heads=2, window_size=4),
    "flash": vit("simple_flash_attn_vit", "SimpleViT", **VIT),
    "1d": of(
        "vit_pytorch.vit_1d.ViT",
        torch.randn(2, 3, 32),
        seq_len=32,
        patch_size=8,
        num_classes=4,
        dim=32,
        depth=1,
        heads=2,
        mlp_dim=32,
    ),
    "small dataset": vit("vit_for_small_dataset", "ViT", **VIT),
    "qk norm": vit("simple_vit_with_qk_norm", "SimpleViT", **VIT),
    "registers": vit("simple_vit_with_register_tokens", "SimpleViT", **VIT),
    "value residual": vit("simple_vit_with_value_residual", "SimpleViT", **VIT),
    "hyper-connections": vit("simple_vit_with_hyper_connections", "SimpleViT", num_residual_streams=2, **VIT),
    "T2T": vit(
        "t2t",
        "T2TViT",
        torch.randn(1, 3, 64, 64),
        image_size=64,
        num_classes=4,
        dim=32,
        depth=1,
        heads=2,
        mlp_dim=32,
        t2t_layers=((7, 4), (3, 2)),
    ),
    "Twins local": of("vit_pytorch.twins_svt.LocalAttention", MAPS, 32, heads=2, patch_size=4),
    "Twins global": of("vit_pytorch.twins_svt.GlobalAttention", MAPS, 32, heads=2, k=4),
    "patch merger": of("vit_pytorch.vit_with_patch_merger.PatchMerger", TOKENS, 32, 4),
    "patch dropout": vit("vit_with_patch_dropout", "ViT", **VIT),
    "ViViT": vit(
        "vivit",
        "ViViT",
        torch.randn(1, 3, 4, 32, 32),
        image_size=32,
        image_patch_size=8,
        frames=4,
        frame_patch_size=2,
        num_classes=4,
        dim=32,
        spatial_depth=1,
        temporal_depth=1,
        heads=2,
        mlp_dim=32,
    ),
    "XCiT": vit(
        "xcit", "XCiT", image_size=32, patch_size=8, num_classes=4, dim=32, depth=1, cls_depth=1, heads=2, mlp_dim=32
    ),
    "look": vit(
        "look_vit",
        "LookViT",
        torch.randn(1, 3, 48, 48),
        dim=32,
        image_size=48,
        num_classes=4,
        depth=1,
        heads=2,
        cross_attn_heads=2,
    ),
    "linear attention": of("vit_pytorch.jet_vit.JetViTLinearAttention", torch.randn(2, 64, 32), 32, 8, 8, heads=2),
    "attention residual": vit("simple_vit_attn_residual", "SimpleViTAttnResidual", **VIT),
}

MONAI = {
    "SABlock": of("monai.networks.blocks.selfattention.SABlock", TOKENS, 32, 2),
    "SABlock fused": of("monai.networks.blocks.selfattention.SABlock", TOKENS, 32, 2, use_flash_attention=True),
    "CrossAttentionBlock": of("monai.networks.blocks.crossattention.CrossAttentionBlock", TOKENS, 32, 2),
    "CABlock": of("monai.networks.blocks.cablock.CABlock", MAPS, 2, 32, 2, False),
    "SpatialAttentionBlock": of("monai.networks.blocks.spatialattention.SpatialAttentionBlock", MAPS, 2, 32),
    "MIL att": of("monai.networks.nets.milmodel.MILModel", torch.randn(1, 4, 3, 64, 64), 2, "att", pretrained=False),
    "MIL att_trans": of(
        "monai.networks.nets.milmodel.MILModel", torch.randn(1, 4, 3, 64, 64), 2, "att_trans", pretrained=False
    ),
    "SwinUNETR": of(
        "monai.networks.nets.swin_unetr.SwinUNETR",
        torch.randn(1, 1, 64, 64),
        spatial_dims=2,
        in_channels=1,
        out_channels=2,
        feature_size=12,
        depths=(1, 1, 1, 1),
        num_heads=(1, 1, 1, 1),
    ),
    "ViT": of(
        "monai.networks.nets.vit.ViT",
        VOLUMES,
        in_channels=1,
        img_size=(32, 32, 32),
        patch_size=(16, 16, 16),
        hidden_size=24,
        mlp_dim=24,
        num_layers=1,
        num_heads=2,
    ),
    "Restormer": of("monai.networks.nets.restormer.Restormer", IMAGES, dim=12, num_blocks=(1, 1), heads=(1, 1)),
    "DiffusionModelUNet": of(
        "monai.networks.nets.diffusion_model_unet.DiffusionModelUNet",
        (torch.randn(1, 1, 16, 16), torch.tensor([3])),
        2,
        1,
        1,
        channels=(16, 16),
        attention_levels=(False, True),
        norm_num_groups=8,
        num_res_blocks=1,
        num_head_channels=8,
    ),
    "BertAttention": of(
        "monai.networks.nets.transchex.BertAttention",
        (TOKENS, TOKENS),
        type(
            "Config",
            (),
            {
                "hidden_size": 32,
                "num_attention_heads": 2,
                "attention_probs_dropout_prob": 0.0,
                "hidden_dropout_prob": 0.0,
                "layer_norm_eps": 1e-6,
            },
        )(),
    ),
    "TwoWayTransformer": of(
        "monai.networks.nets.vista3d.TwoWayTransformer",
        (torch.randn(1, 32, 4, 4, 4), torch.randn(1, 32, 4, 4, 4), torch.randn(1, 3, 32)),
        2,
        32,
        2,
        64,
    ),
    "DAF3D attention": of(
        "monai.networks.nets.daf3d.AttentionModule",
        (torch.randn(1, 64, 8, 8, 8), torch.randn(1, 64, 8, 8, 8)),
        3,
        128,
        64,
    ),
}

SEGMENT_ANYTHING = {
    "image encoder": of(
        "segment_anything.modeling.image_encoder.ImageEncoderViT",
        IMAGES,
        img_size=32,
        patch_size=8,
        embed_dim=32,
        depth=2,
        num_heads=2,
        out_chans=16,
        window_size=2,
        global_attn_indexes=(1,),
        use_rel_pos=True,
    ),
    "two-way transformer": of(
        "segment_anything.modeling.transformer.TwoWayTransformer",
        (torch.randn(1, 32, 4, 4), torch.randn(1, 32, 4, 4), torch.randn(1, 3, 32)),
        2,
        32,
        2,
        64,
    ),
}

KORNIA = {
    "LoFTR full": of(
        "kornia.feature.loftr.loftr_module.transformer.LoFTREncoderLayer", (TOKENS, TOKENS), 32, 2, "full"
    ),
    "LoFTR linear": of(
        "kornia.feature.loftr.loftr_module.transformer.LoFTREncoderLayer", (TOKENS, TOKENS), 32, 2, "linear"
    ),
    "LightGlue self": of("kornia.feature.lightglue.SelfBlock", (TOKENS, torch.randn(2, 1, 1, 16, 16)), 32, 2),
    "LightGlue cross": of("kornia.feature.lightglue.CrossBlock", (TOKENS, TOKENS), 32, 2),
    "LightGlue assignment": of("kornia.feature.lightglue.MatchAssignment", (TOKENS, TOKENS), 32),
    "ViT": of(
        "kornia.models.vit.VisionTransformer",
        IMAGES,
        image_size=32,
        patch_size=8,
        in_channels=3,
        embed_dim=32,
        depth=1,
        num_heads=2,
    ),
}


def _clip() -> tuple[nn.Module, object]:
    model = import_module("open_clip.model")
    vision = model.CLIPVisionCfg(layers=1, width=32, head_width=16, patch_size=8, image_size=32)
    text = model.CLIPTextCfg(context_length=8, vocab_size=32, width=32, heads=2, layers=1)
    return model.CLIP(16, vision, text), (IMAGES, torch.randint(1, 32, (2, 8)))


def _clip_resnet() -> tuple[nn.Module, object]:
    model = import_module("open_clip.model")
    vision = model.CLIPVisionCfg(layers=(1, 1, 1, 1), width=16, image_size=32, patch_size=None)
    text = model.CLIPTextCfg(context_length=8, vocab_size=32, width=32, heads=2, layers=1)
    return model.CLIP(16, vision, text), (IMAGES, torch.randint(1, 32, (2, 8)))


def _coca() -> tuple[nn.Module, object]:
    coca = import_module("open_clip.coca_model")
    vision = {
        "layers": 1,
        "width": 32,
        "head_width": 16,
        "patch_size": 8,
        "image_size": 32,
        "attentional_pool": True,
        "attn_pooler_heads": 2,
        "output_tokens": True,
    }
    text = {
        "context_length": 8,
        "vocab_size": 32,
        "width": 32,
        "heads": 2,
        "layers": 1,
        "embed_cls": True,
        "output_tokens": True,
    }
    multimodal = {"context_length": 8, "vocab_size": 32, "width": 32, "heads": 2, "layers": 1}
    model = coca.CoCa(32, multimodal, text, vision)
    return model, {"image": IMAGES, "text": torch.randint(1, 32, (2, 8))}


OPEN_CLIP = {"CLIP": _clip, "CLIP ResNet": _clip_resnet, "CoCa": _coca}


def _timm(name: str, size: int = 224, **options: Any) -> Callable[[], tuple[nn.Module, object]]:
    return lambda: (import_module("timm").create_model(name, **options), torch.randn(1, 3, size, size))


TIMM = {
    **{
        name: _timm(name)
        for name in (
            "levit_128s",
            "xcit_nano_12_p16_224",
            "davit_tiny",
            "swin_tiny_patch4_window7_224",
            "volo_d1_224",
            "mvitv2_tiny",
            "cait_xxs24_224",
            "efficientformerv2_s0",
            "convit_tiny",
            "crossvit_tiny_240",
            "nest_tiny",
            "maxvit_nano_rw_256",
            "coatnet_nano_rw_224",
            "twins_svt_small",
            "pvt_v2_b0",
            "poolformer_s12",
            "gcresnet33ts",
            "edgenext_xx_small",
            "mobilevit_xxs",
            "mobilevitv2_050",
            "visformer_tiny",
            "tnt_s_legacy_patch16_224",
            "beit_base_patch16_224",
            "eva02_tiny_patch14_224",
            "skresnet18",
            "resnest14d",
            "resnet18",
        )
    },
}
TIMM |= {name: _timm(name, 256) for name in ("maxvit_nano_rw_256", "halonet26t", "lambda_resnet26t", "botnet26t_256")}
TIMM |= {
    "crossvit_tiny_240": _timm("crossvit_tiny_240", 240),
    "eva02_tiny_patch14_224": _timm("eva02_tiny_patch14_224"),
}


def _flux() -> tuple[nn.Module, object]:
    model = import_module("diffusers").FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    )
    inputs = {
        "hidden_states": torch.randn(1, 16, 4),
        "encoder_hidden_states": torch.randn(1, 5, 32),
        "pooled_projections": torch.randn(1, 32),
        "timestep": torch.tensor([1.0]),
        "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(5, 3),
    }
    return model, inputs


def _unet() -> tuple[nn.Module, object]:
    model = import_module("diffusers").UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 32),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    return model, (torch.randn(1, 4, 8, 8), torch.tensor(3), torch.randn(1, 5, 32))


def _autoencoder() -> tuple[nn.Module, object]:
    model = import_module("diffusers").AutoencoderKL(block_out_channels=(32,), norm_num_groups=8)
    return model, IMAGES


DIFFUSERS = {"Flux": _flux, "UNet": _unet, "AutoencoderKL": _autoencoder}

DENOISING = {
    "UNet": of(
        "denoising_diffusion_pytorch.Unet", (torch.randn(1, 3, 16, 16), torch.tensor([3])), 16, dim_mults=(1, 2)
    ),
    "Attention": of("denoising_diffusion_pytorch.denoising_diffusion_pytorch.Attention", MAPS, 32),
}

CASES = {
    "vit-pytorch": VIT_PYTORCH,
    "monai": MONAI,
    "segment-anything-py": SEGMENT_ANYTHING,
    "kornia": KORNIA,
    "open_clip_torch": OPEN_CLIP,
    "timm": TIMM,
    "diffusers": DIFFUSERS,
    "denoising-diffusion-pytorch": DENOISING,
}
