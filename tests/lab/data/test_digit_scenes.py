import json
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as codec
from pycocotools.coco import COCO

from preconditioned_attention.lab.data.digit_scenes import (
    LEAST_PIXELS,
    DigitScenes,
    describe_mask,
    make_scenes,
    write_digit_scenes,
)

SMALL = DigitScenes(count=6, held_out=3, image_size=64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "scenes"
    write_digit_scenes(path, SMALL)
    return path


@pytest.mark.parametrize(("split", "count"), [("train", 6), ("val", 3), ("test", 3)])
def test_what_is_written_is_what_was_made(folder: Path, split: str, count: int) -> None:
    coco = COCO(folder / "annotations" / f"instances_{split}.json")
    scenes = list(make_scenes(split, SMALL))
    assert sorted(coco.imgs) == list(range(1, count + 1))
    for image_id, scene in enumerate(scenes, start=1):
        info = coco.imgs[image_id]
        image = np.asarray(Image.open(folder / "images" / info["file_name"]))
        assert image.shape == (info["height"], info["width"], 3) == (64, 64, 3)
        assert np.array_equal(image, scene.image)
        annotations = coco.imgToAnns[image_id]
        assert len(annotations) == len(scene.masks) > 0
        for annotation, mask in zip(annotations, scene.masks, strict=True):
            assert np.array_equal(coco.annToMask(annotation), mask)
            assert annotation["bbox"] == codec.toBbox(annotation["segmentation"]).tolist()
            assert annotation["area"] == codec.area(annotation["segmentation"]) >= LEAST_PIXELS
            assert (annotation["category_id"], annotation["iscrowd"]) == (1, 0)
    assert coco.dataset["info"]["options"]["count"] == 6


def test_masks_hold_visible_pixels_only() -> None:
    overlapping = 0
    for scene in islice(make_scenes("train", DigitScenes(count=40, image_size=64)), 40):
        covered = np.stack(scene.masks).sum(axis=0)
        assert covered.max() == 1
        boxes = [describe_mask(mask)["bbox"] for mask in scene.masks]
        for (x, y, width, height), (u, v, w, h) in pairwise(boxes):
            overlapping += x < u + w and u < x + width and y < v + h and v < y + height
    assert overlapping > 5


def test_a_mask_covers_ink() -> None:
    """Inside a mask colors are those of the digit: they differ from those around it."""
    differences = []
    for scene in make_scenes("val", DigitScenes(held_out=20)):
        gray, outside = scene.image.mean(axis=-1), ~np.stack(scene.masks).any(axis=0)
        differences += [abs(gray[mask].mean() - gray[outside].mean()) / 255 for mask in scene.masks]
    assert np.median(differences) > 0.3


def test_a_scene_depends_on_seed_split_and_number_alone() -> None:
    long, short = (list(make_scenes("val", DigitScenes(held_out=count, image_size=64))) for count in (4, 2))
    assert all(np.array_equal(one.image, other.image) for one, other in zip(short, long, strict=False))
    other_seed = next(make_scenes("val", DigitScenes(held_out=1, seed=1, image_size=64)))
    other_split = next(make_scenes("test", DigitScenes(held_out=1, image_size=64)))
    assert not np.array_equal(long[0].image, other_seed.image)
    assert not np.array_equal(long[0].image, other_split.image)
    ten = list(make_scenes("val", DigitScenes(held_out=2, classes=10, image_size=64)))
    assert all(np.array_equal(one.image, other.image) for one, other in zip(short, ten, strict=True))


def test_ten_classes_are_the_digits(tmp_path: Path) -> None:
    options = DigitScenes(count=4, held_out=1, classes=10, image_size=64)
    write_digit_scenes(tmp_path / "ten", options)
    written = json.loads((tmp_path / "ten" / "annotations" / "instances_train.json").read_text())
    labels = [label + 1 for scene in make_scenes("train", options) for label in scene.labels]
    assert [one["category_id"] for one in written["annotations"]] == labels
    assert [(one["id"], one["name"]) for one in written["categories"]][:2] == [(1, "zero"), (2, "one")]
    assert len(written["categories"]) == 10


def test_a_folder_appears_when_it_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "preconditioned_attention.lab.data.digit_scenes._write_split"

    def fail(*_: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr(module, fail)
    with pytest.raises(OSError, match="no room"):
        write_digit_scenes(tmp_path / "scenes", SMALL)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_kept(folder: Path) -> None:
    with pytest.raises(ValueError, match="exists already"):
        write_digit_scenes(folder, SMALL)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count must be at least 1"),
        ({"held_out": 0}, "held_out must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"classes": 2}, r"classes must be 1 .* or 10; got 2"),
        ({"image_size": 8}, "image_size must be at least 32"),
    ],
)
def test_options_that_cannot_be(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DigitScenes(**options)
