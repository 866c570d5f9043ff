"""MaxViT, ViT, which is built of `nn.MultiheadAttention`, and every model that torchvision has."""

import pytest
import torch
import torchvision
from torchvision.models import maxvit, vision_transformer

from preconditioned_attention import precondition_
from tests.helpers.torchvision_by_hand import IMAGE, check_whole_model

MODELS = {
    "vit": (lambda: vision_transformer.VisionTransformer(14, 7, 2, 3, 12, 24, num_classes=5), IMAGE),
    "maxvit": (
        lambda: maxvit.MaxVit((16, 16), 4, 2, [4, 8], [1, 1], 4, 0.0, num_classes=5),
        (2, 3, 16, 16),
    ),
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("build", "shape"), MODELS.values(), ids=MODELS.keys())
def test_whole_models(build, shape: tuple[int, ...], training: bool) -> None:
    check_whole_model(build, shape, training)


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
