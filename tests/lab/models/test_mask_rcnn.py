from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models.detection import MaskRCNN

from preconditioned_attention import is_preconditioned, precondition_, restore_
from preconditioned_attention.lab.models.detection_heads import AlignedRoIAlign, L1Proposals, L1RoIHeads
from preconditioned_attention.lab.models.mask_rcnn import MaskRCNNConfig, make_mask_rcnn
from preconditioned_attention.lab.recipes import load_recipe

SMALL = {
    "backbone": "xcit_nano_12_p8_224",
    "backbone_options": {"embed_dim": 32, "depth": 4, "num_heads": 4},
    "taps": [0, 1, 2, 3],
    "channels": 16,
    "anchor_sizes": [8, 16, 32, 64, 96],
    "proposals": 50,
    "proposals_per_level": 100,
    "rpn_samples": 32,
    "roi_samples": 16,
    "box_hidden": 32,
    "mask_layers": 1,
    "mask_channels": 16,
    "detections": 10,
    "test_size": 64,
    "max_size": 96,
}


def build(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    return make_mask_rcnn(MaskRCNNConfig.from_dict({**SMALL, **changes}), classes=2)


def batch() -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(3, 64, 96, generator=generator), torch.rand(3, 80, 64, generator=generator)]
    masks = torch.zeros(2, 64, 96, dtype=torch.uint8)
    masks[0, 10:40, 10:30] = 1
    masks[1, 20:60, 50:90] = 1
    boxes = torch.tensor([[10.0, 10, 30, 40], [50, 20, 90, 60]])
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    return images, [
        {"boxes": boxes, "labels": torch.tensor([1, 2]), "masks": masks},
        {**empty, "masks": torch.zeros(0, 80, 64, dtype=torch.uint8)},
    ]


@pytest.mark.parametrize(("name", "millions"), [("s12", 44.39), ("m24", 101.16)])
def test_parameter_counts_are_the_published_ones(name: str, millions: float) -> None:
    model = load_recipe(f"coco/mask_rcnn_xcit_{name}").train.task_options["model"]
    for heads in ({}, {"box_loss": "smooth_l1", "roi_align": "sampled", "batch_norm": "train"}):
        with torch.device("meta"):
            detector = make_mask_rcnn(MaskRCNNConfig.from_dict({**model, "pretrained": False, **heads}), classes=80)
        count = sum(parameter.numel() for parameter in detector.parameters())
        frozen = sum(b.numel() for n, b in detector.named_buffers() if n.endswith((".weight", ".bias")))
        assert round((count + frozen) / 1e6, 2) == millions


@pytest.mark.parametrize("mmdetection", [False, True], ids=["torchvision", "mmdetection"])
def test_losses_and_detections(mmdetection: bool) -> None:
    heads = {"box_loss": "l1", "roi_align": "aligned", "round_anchors": False} if mmdetection else {}
    model = build(**heads)
    losses = model(*batch())
    assert sorted(losses) == ["loss_box_reg", "loss_classifier", "loss_mask", "loss_objectness", "loss_rpn_box_reg"]
    sum(losses.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    model.eval()
    with torch.no_grad():
        detections = model(batch()[0])
    for image, found in zip(batch()[0], detections, strict=True):
        assert len(found["boxes"]) <= 10
        assert found["masks"].shape[1:] == (1, *image.shape[1:])
        assert (found["boxes"][:, 2] <= image.shape[2]).all()


def test_l1_differs_from_smooth_l1_as_it_should() -> None:
    """Smooth L1 with beta b is |d| - b / 2 beyond b, and d ** 2 / (2 b) below."""
    plain, l1 = build(), build(box_loss="l1")
    assert isinstance(l1.rpn, L1Proposals)
    assert isinstance(l1.roi_heads, L1RoIHeads)
    l1.load_state_dict(plain.state_dict())
    torch.manual_seed(3)
    smooth = plain(*batch())
    torch.manual_seed(3)
    absolute = l1(*batch())
    for name in ("loss_classifier", "loss_mask", "loss_objectness"):
        torch.testing.assert_close(absolute[name], smooth[name])
    for name in ("loss_box_reg", "loss_rpn_box_reg"):
        assert smooth[name] < absolute[name] < smooth[name] + 0.5


def test_box_losses_by_hand() -> None:
    logits, labels = torch.tensor([[2.0, 0, 0], [0, 1, 0], [0, 0, 3]]), torch.tensor([0, 1, 2])
    deltas = torch.arange(36.0).view(3, 12) / 100
    targets = torch.zeros(3, 4)
    losses = L1RoIHeads._box_losses(logits, deltas, labels, targets)
    expected = (deltas[1, 4:8].sum() + deltas[2, 8:12].sum()) / 3
    torch.testing.assert_close(losses["loss_box_reg"], expected)
    torch.testing.assert_close(losses["loss_classifier"], nn.functional.cross_entropy(logits, labels))


def test_aligned_pooling_of_a_ramp_is_exact() -> None:
    """On a linear ramp the mean over a bin is the value at its center; pixel centers stand at halves."""
    pool = AlignedRoIAlign(("0", "1", "2", "3"), 2)
    ramps = {}
    for name, stride in zip("0123", (4, 8, 16, 32), strict=True):
        x = (torch.arange(256 // stride) + 0.5) * stride
        ramps[name] = x.expand(1, 1, 256 // stride, -1).contiguous()
    boxes = torch.tensor([[40.0, 40, 72, 72], [60, 60, 180, 180], [16, 16, 240, 240]])
    pooled = pool(ramps, [boxes], [(256, 256)])[:, 0, 0]
    left, right = boxes[:, 0], boxes[:, 2]
    torch.testing.assert_close(pooled, torch.stack([left + (right - left) / 4, right - (right - left) / 4], dim=1))


def test_anchors() -> None:
    exact, rounded = build(round_anchors=False), build()
    corners = exact.rpn.anchor_generator.cell_anchors[1]
    width, height = (corners[:, 2:] - corners[:, :2]).unbind(1)
    torch.testing.assert_close(width * height, torch.full((3,), 256.0))
    torch.testing.assert_close(height / width, torch.tensor([0.5, 1, 2]))
    assert torch.equal(rounded.rpn.anchor_generator.cell_anchors[1], corners.round())


def test_frozen_statistics_stay() -> None:
    model = build(batch_norm="frozen")
    kinds = {type(module).__name__ for module in model.backbone.body.modules()}
    assert "FrozenBatchNorm2d" in kinds
    assert "BatchNorm2d" not in kinds
    before = {name: value.clone() for name, value in model.backbone.body.named_buffers()}
    sum(model(*batch()).values()).backward()
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.body.named_buffers())
    trained = build()
    before = {name: value.clone() for name, value in trained.backbone.body.named_buffers() if "running" in name}
    trained(*batch())
    changed = dict(trained.backbone.body.named_buffers())
    assert before
    assert not any(torch.equal(changed[name], value) for name, value in before.items())


def test_synchronized_statistics_leave_no_other() -> None:
    model = build(batch_norm="synchronized")
    kinds = {type(module) for module in model.modules()}
    assert nn.SyncBatchNorm in kinds
    assert nn.BatchNorm2d not in kinds
    assert sum(model(*batch()).values()).isfinite()  # one process needs no group


def test_heads_keep_full_precision_under_autocast() -> None:
    """In bfloat16 anchors beyond 256 pixels would lose odd coordinates."""
    model, seen = build(), []

    def look(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.append({maps.dtype for maps in inputs[1].values()} | {torch.is_autocast_enabled("cpu")})

    model.rpn.register_forward_pre_hook(look)
    model.backbone.register_forward_hook(lambda module, inputs, output: seen.append({output["0"].dtype}))
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(*batch())
    assert seen == [{torch.bfloat16}, {torch.float32, False}]
    assert {loss.dtype for loss in losses.values()} == {torch.float32}


def test_the_same_numbers_as_torchvision() -> None:
    model = build()
    torch.manual_seed(4)
    losses = model(*batch())
    torch.manual_seed(4)
    expected = MaskRCNN.forward(model, *batch())
    assert losses == expected
    model.eval()
    with torch.no_grad():
        for own, other in zip(model(batch()[0]), MaskRCNN.forward(model, batch()[0]), strict=True):
            assert all(torch.equal(own[name], other[name]) for name in ("boxes", "labels", "scores", "masks"))


def test_the_whole_detector_converts_and_is_restored() -> None:
    model = build().eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    images, _ = batch()
    with torch.no_grad():
        features = model.backbone(images[0][None])["0"]
        report = precondition_(model)
        assert [entry.path for entry in report.converted] == [f"backbone.body.model.blocks.{n}.attn" for n in range(4)]
        assert len(report.entries) == 4
        assert not torch.equal(model.backbone(images[0][None])["0"], features)
        restore_(model)
        assert torch.equal(model.backbone(images[0][None])["0"], features)
    assert model.state_dict().keys() == state.keys()
    assert not is_preconditioned(model)


def test_a_plain_checkpoint_in_a_preconditioned_detector_warns() -> None:
    plain, other = build(), build()
    precondition_(other)
    with pytest.warns(UserWarning, match="preconditioned"):
        other.load_state_dict(plain.state_dict(), strict=False)
    with pytest.raises(RuntimeError, match="requires_preconditioned_attention"):
        plain.load_state_dict(other.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbon": "x"}, r"unknown option of the detector: 'backbon' \(did you mean 'backbone'"),
        ({"box_loss": "l2"}, "unknown box_loss 'l2'"),
        ({"roi_align": "exact"}, "unknown roi_align 'exact'"),
        ({"batch_norm": "off"}, "unknown batch_norm 'off'"),
        ({"anchor_sizes": [32]}, "anchor_sizes must hold one size for each of five levels"),
        ({"channels": 0}, "channels must be at least 1"),
        ({"taps": [-1]}, "taps must be at least 0"),
    ],
)
def test_options_that_cannot_be(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskRCNNConfig.from_dict(options)
