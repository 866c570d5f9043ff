"""The task of the recipe ``digits`` with a model as small as a test wants it."""

from typing import Any

TASK = "image-classification"


def digits_options(**model_options: Any) -> dict[str, Any]:
    """Options of :data:`TASK`: a vision transformer on images of 8 x 8 pixels, without preprocessing."""
    model = {"in_chans": 1, "patch_size": 2, "embed_dim": 64, "depth": 4, "num_heads": 4, "mlp_ratio": 2}
    return {
        "model": "vit_tiny_patch16_224",
        "model_options": {**model, **model_options},
        "dataset": "digits",
        "image_size": 8,
        "preprocessing": "none",
        "optimizer": None,
    }
