import pytest
import torch
from torch import nn

from preconditioned_attention import precondition_
from preconditioned_attention.lab.models.pyramid import FeaturePyramid

SMALL = {
    "xcit": ("xcit_nano_12_p16_224", {"embed_dim": 32, "depth": 4, "num_heads": 4}, (0, 1, 2, 3)),
    "xcit-p8": ("xcit_nano_12_p8_224", {"embed_dim": 32, "depth": 4, "num_heads": 4}, (0, 1, 2, 3)),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2), "strict_img_size": False},
        None,
    ),
    "vit": (
        "vit_tiny_patch16_224",
        {"embed_dim": 32, "depth": 2, "num_heads": 2, "dynamic_img_size": True},
        (1,),
    ),
}


def build(kind: str) -> FeaturePyramid:
    name, options, taps = SMALL[kind]
    torch.manual_seed(0)
    return FeaturePyramid(name, options=options, taps=taps, channels=24)


@pytest.mark.parametrize("kind", SMALL)
def test_five_maps_of_doubling_strides(kind: str) -> None:
    pyramid = build(kind)
    maps = pyramid(torch.randn(2, 3, 64, 96))
    assert list(maps) == ["0", "1", "2", "3", "pool"]
    sizes = {name: tuple(features.shape) for name, features in maps.items()}
    strides = dict(zip(maps, (4, 8, 16, 32, 64), strict=True))
    assert sizes == {name: (2, 24, 64 // stride, -(-96 // stride)) for name, stride in strides.items()}
    sum(features.square().mean() for features in maps.values()).backward()
    assert all(parameter.grad is not None for parameter in pyramid.parameters())


@pytest.mark.parametrize("kind", SMALL)
def test_all_attention_of_the_backbone_and_nothing_else_is_converted(kind: str) -> None:
    pyramid = build(kind)
    report = precondition_(pyramid)
    names = {"xcit": "attn", "xcit-p8": "attn", "swin": "attn", "vit": "attn"}
    expected = [name for name, _ in pyramid.body.named_modules() if name.endswith(f".{names[kind]}")]
    assert [entry.path for entry in report.converted] == [f"body.{name}" for name in expected]
    assert len(report.entries) == len(expected) == {"xcit": 4, "xcit-p8": 4, "swin": 4, "vit": 2}[kind]


def test_xcit_keeps_neither_class_attention_nor_final_norm() -> None:
    body = build("xcit").body
    kinds = {type(module).__name__ for module in body.modules()}
    assert "XCA" in kinds
    assert not kinds & {"ClassAttn", "ClassAttentionBlock"}
    assert isinstance(body.model.norm, nn.Identity)


def test_the_taps_are_the_outputs_of_those_blocks() -> None:
    pyramid = FeaturePyramid(
        "xcit_nano_12_p16_224", options={"embed_dim": 32, "depth": 6}, taps=(1, 2, 3, 4), channels=8
    )
    pyramid.eval()
    blocks = pyramid.body.model.blocks
    assert len(blocks) == 5  # nothing behind the last tap is kept
    seen = []
    blocks[2].register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        maps = pyramid.body(torch.randn(1, 3, 64, 64))
    assert torch.equal(maps[1], seen[0].transpose(1, 2).reshape(1, 32, 4, 4))


def test_strides_of_sixteen_are_enlarged_as_in_the_original() -> None:
    """Two transposed convolutions with norm and GELU between; one; nothing; pooling."""
    rescale = build("xcit").levels.rescale
    assert [type(layer) for layer in rescale[0]] == [nn.ConvTranspose2d, nn.BatchNorm2d, nn.GELU, nn.ConvTranspose2d]
    assert [type(layer) for layer in rescale[1]] == [nn.ConvTranspose2d]
    assert isinstance(rescale[2], nn.Identity)
    assert isinstance(rescale[3], nn.MaxPool2d)


def test_weights_that_cannot_be_had_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str, *, pretrained: bool, **options: object) -> None:
        raise RuntimeError("no network")

    monkeypatch.setattr("timm.create_model", offline)
    with pytest.raises(OSError, match=r"pretrained weights of backbone 'xcit_nano_12_p16_224' .*no network"):
        FeaturePyramid("xcit_nano_12_p16_224", options={}, taps=None, channels=8, pretrained=True)
    with pytest.raises(RuntimeError, match="no network"):
        FeaturePyramid("xcit_nano_12_p16_224", options={}, taps=None, channels=8)


@pytest.mark.parametrize(
    ("name", "taps", "message"),
    [
        ("xcit_nano", (0,), "backbone must be a model name of timm"),
        ("xcit_nano_12_p16_224", (0, 1), r"taps \(0, 1\) gives maps of strides \[16, 16\]"),
    ],
)
def test_backbones_that_cannot_be(name: str, taps: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeaturePyramid(name, options={}, taps=taps, channels=8)
