"""The shapes of attention, training steps and monitored steps that are measured."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Shape:
    """q is (batch, heads, length, head_dim); k and v have ``keys`` tokens."""

    name: str
    batch: int
    heads: int
    length: int
    keys: int
    head_dim: int
    is_causal: bool = False
    trains: bool = True  # False: forward only, as in decoding


SHAPES: tuple[Shape, ...] = (
    Shape(name="swin-window", batch=128, heads=4, length=49, keys=49, head_dim=32),
    Shape(name="vit-b", batch=4, heads=12, length=197, keys=197, head_dim=64),
    Shape(name="gpt2-train", batch=1, heads=12, length=1024, keys=1024, head_dim=64, is_causal=True),
    Shape(name="long-1k", batch=2, heads=8, length=1024, keys=1024, head_dim=64),
    Shape(name="long-4k", batch=1, heads=4, length=4096, keys=4096, head_dim=64),
    Shape(name="long-16k", batch=1, heads=1, length=16384, keys=16384, head_dim=64),
    Shape(name="decode", batch=4, heads=12, length=1, keys=2048, head_dim=64, trains=False),
)

STEPS: tuple[Shape, ...] = (
    Shape(name="step-vit-s", batch=8, heads=6, length=197, keys=197, head_dim=64),
    # The models of the ImageNet recipes, in their first stage; DeiT-B is ViT-B.
    Shape(name="step-vit-b", batch=2, heads=12, length=197, keys=197, head_dim=64),
    Shape(name="step-swin-b", batch=2, heads=4, length=49, keys=49, head_dim=32),
    Shape(name="step-xcit-m24", batch=2, heads=8, length=196, keys=196, head_dim=64),
    Shape(name="step-davit-b", batch=2, heads=4, length=49, keys=49, head_dim=32),
    Shape(name="step-gpt2", batch=1, heads=12, length=512, keys=512, head_dim=64, is_causal=True),
)
"""Whole training steps of models with this attention."""

# The step of "step-vit-s": a ViT-S/16 on 8 images of 224 x 224.
MONITORED = replace(STEPS[0], name="monitor-vit-s")
