"""Small models for the tests of inspections."""

from dataclasses import replace

import timm
import transformers
from torch import nn

from preconditioned_attention.lab.inspection import Head, Inspection
from preconditioned_attention.lab.inspection.measurement import LayerProfile

LAYERS = ["blocks.0.attn", "blocks.1.attn"]


def vit(**options: object) -> nn.Module:
    sizes = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 3, "num_classes": 5}
    overlay = {"input_size": (3, 32, 32)}
    return timm.create_model("vit_tiny_patch16_224", pretrained_cfg_overlay=overlay, **{**sizes, **options})


def gpt2(**options: object) -> nn.Module:
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 300, "n_positions": 40}
    return transformers.GPT2Model(transformers.GPT2Config(**{**sizes, **options}))


def head(**changes: object) -> Head:
    plain = Head(
        layer="blocks.0.attn", head=0, rows=17, head_dim=8, kappa_before=100.0, kappa_after=100.0,
        spread=0.01, common_direction=0.5, entropy=2.0,
    )  # fmt: skip
    return replace(plain, **changes)


def inspection(*heads: Head, **changes: object) -> Inspection:
    layers = dict.fromkeys(one.layer for one in heads)
    profiles = tuple(LayerProfile(layer=layer, before=(1.0, 0.1), after=(1.0, 0.2)) for layer in layers)
    plain = Inspection(weights="random", precision="float64", heads=heads, profiles=profiles, no_entropy={})
    return replace(plain, **changes)
