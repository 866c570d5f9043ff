from pathlib import Path

import pytest
import torch

from preconditioned_attention.lab.data.coco import CocoInstances
from preconditioned_attention.lab.data.coco_augmentation import RandomSizeCrop, make_training_transform
from tests.helpers.coco_trees import write_tree


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("data") / "coco")


def augmented(root: Path, transform: object) -> CocoInstances:
    annotations = root / "annotations" / "instances_train2017.json"
    return CocoInstances(annotations, root / "train2017", training=True, transform=transform)  # type: ignore[arg-type]


def test_the_shorter_side_is_one_of_several(root: Path) -> None:
    torch.manual_seed(0)
    dataset = augmented(root, make_training_transform(sides=[96, 128], longest=150, crop=False))
    sizes = {tuple(dataset[index % 6][0].shape[1:]) for index in range(40)}
    assert sizes == {(96, 96), (128, 128), (96, 128), (128, 96), (112, 150), (150, 112)}  # 128 x 170 would be too long


def test_boxes_masks_and_pixels_move_together(root: Path) -> None:
    torch.manual_seed(0)
    dataset = augmented(root, make_training_transform(sides=[96, 128], longest=200))
    flipped = 0
    for index in range(30):
        image, target = dataset[index % 6]
        assert target["masks"].shape[1:] == image.shape[1:]
        assert len(target["boxes"]) == len(target["masks"]) == len(target["labels"])
        for box, mask, label in zip(target["boxes"], target["masks"], target["labels"], strict=True):
            left, top, right, bottom = box.round().long().tolist()
            inside = mask[top:bottom, left:right].float().mean()
            assert inside > 0.85
            assert mask.sum() == mask[max(top - 1, 0) : bottom + 1, max(left - 1, 0) : right + 1].sum()
            assert image[:, mask > 0].mean() > 0.5
            flipped += bool(label == 1 and left > image.shape[2] / 2)
    assert 3 < flipped < 27


def test_half_of_the_images_are_cropped(root: Path) -> None:
    torch.manual_seed(0)
    dataset = augmented(root, make_training_transform(sides=[480], longest=1333))
    square = 2  # a square image stays one unless it is cropped
    shapes = [tuple(dataset[square][0].shape[1:]) for _ in range(24)]
    cropped = sum(height != width for height, width in shapes)
    assert 4 < cropped < 20
    assert all(min(shape) in (479, 480) for shape in shapes)  # torchvision rounds down


def test_a_crop_is_no_larger_than_the_image() -> None:
    torch.manual_seed(0)
    crop = RandomSizeCrop(40, 60)
    for _ in range(10):
        height, width = crop(torch.rand(3, 50, 30)).shape[1:]
        assert 40 <= height <= 50
        assert width == 30


def test_a_crop_may_leave_no_object(root: Path) -> None:
    def corner(image: object, target: dict) -> tuple:
        crop = RandomSizeCrop(4, 4)
        crop.make_params = lambda inputs: {"top": 0, "left": 0, "height": 4, "width": 4}  # type: ignore[method-assign]
        cropped = crop(image, target)
        return make_training_transform(sides=[32], crop=False)(*cropped)

    _, target = augmented(root, corner)[1]
    assert target["boxes"].shape == (0, 4)
    assert target["masks"].shape == (0, 32, 32)
    assert target["labels"].shape == (0,)
