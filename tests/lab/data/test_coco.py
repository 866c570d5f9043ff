import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pycocotools import mask

from preconditioned_attention.lab.data.coco import CocoInstances
from preconditioned_attention.lab.tasks.detection_metrics import average_precision, encode_detections
from tests.helpers.coco_trees import make_content, write_annotations, write_tree


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "coco")


def opened(root: Path, *, training: bool = True, change: Any = None) -> CocoInstances:
    """The training split after ``change`` was applied to its content."""
    path = root / "annotations" / "instances_train2017.json"
    if change is not None:
        content = json.loads(path.read_text())
        change(content)
        write_annotations(root, "train2017", content)
    return CocoInstances(path, root / "train2017", training=training)


def test_what_is_read_is_what_is_there(root: Path) -> None:
    dataset = opened(root)
    assert (len(dataset), dataset.category_ids) == (6, [1, 3])
    image, target = dataset[1]
    assert image.shape == (3, 80, 60)
    assert image.dtype == torch.float32
    assert 0 <= image.min() < image.max() <= 1
    assert {type(value) for value in (image, *target.values())} == {torch.Tensor}
    assert target["boxes"].tolist() == [[5, 6, 25, 36], [30, 30, 48, 46]]
    assert target["labels"].tolist() == [1, 2]  # in the order of the ids, without the gap
    assert target["image_id"] == 101
    expected = torch.zeros(2, 80, 60, dtype=torch.uint8)
    expected[0, 6:36, 5:25] = 1
    expected[1, 30:46, 30:48] = 1
    assert torch.equal(target["masks"], expected)
    assert image[:, 8:34, 7:23].mean() > image[:, 50:].mean() + 0.2  # the object is where its mask is


def test_images_without_annotations_are_left_out_of_training_only(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    def remove(content: dict) -> None:
        content["annotations"] = [one for one in content["annotations"] if one["image_id"] not in (101, 103)]

    with caplog.at_level(logging.WARNING):
        training = opened(root, change=remove)
    assert training.image_ids == [100, 102, 104, 105]
    assert training.left_out["images without annotations"] == 2
    assert "left out 2 images without annotations of 6 images" in caplog.text
    evaluated = opened(root, training=False)
    assert len(evaluated) == 6
    assert evaluated.left_out["images without annotations"] == 0
    target = evaluated[1][1]
    assert target["boxes"].shape == (0, 4)
    assert target["masks"].shape == (0, 80, 60)


def test_crowds_and_specks_are_left_out_of_the_targets(root: Path) -> None:
    def change(content: dict) -> None:
        content["annotations"][0]["iscrowd"] = 1
        content["annotations"][0]["segmentation"] = {"size": [60, 80], "counts": [0, 4800]}
        content["annotations"][3]["bbox"] = [3, 3, 0.4, 12]

    dataset = opened(root, change=change)
    assert (dataset.left_out["crowd regions"], dataset.left_out["boxes of less than a pixel"]) == (1, 1)
    assert dataset[0][1]["labels"].tolist() == [2]
    assert dataset[1][1]["labels"].tolist() == [1]
    assert len(dataset.api.anns) == 12  # the evaluation knows the crowd


def test_a_box_that_is_rounded_over_the_border_is_cut(root: Path) -> None:
    dataset = opened(root, change=lambda content: content["annotations"][0].update(bbox=[60.5, -0.25, 20, 30.5]))
    assert dataset[0][1]["boxes"][0].tolist() == [60.5, 0, 80, 30.25]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["annotations"][2].update(bbox=[50, 6, 20, 30]),
            r"annotation 3 in .*train2017.json .*outside.*101",
        ),
        (lambda c: c["annotations"][2].update(bbox=[-3, 6, 20, 30]), r"annotation 3 in .*outside its image 101"),
        (lambda c: c["annotations"][2].update(bbox=[3, 6, -2, 30]), r"annotation 3 in .*outside its image 101"),
        (lambda c: c["annotations"][2].update(category_id=2), r"annotation 3 in .* has category 2; .* \[1, 3\]"),
        (lambda c: c["annotations"][2].update(image_id=7), r"annotation 3 in .* belongs to image 7"),
        (lambda c: c["annotations"][2].pop("bbox"), r"annotation 3 in .* lacks bbox"),
        (lambda c: c["annotations"].clear(), r"train2017.json holds no image with annotations"),
        (lambda c: c["images"].clear() or c["annotations"].clear(), r"train2017.json holds no image;"),
        (lambda c: c.pop("categories"), r"train2017.json lacks categories"),
    ],
)
def test_what_is_wrong_is_named(root: Path, change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        opened(root, change=change)


def test_a_truncated_image_is_named(root: Path) -> None:
    path = root / "train2017" / "000000000102.jpg"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(OSError, match=r"000000000102.jpg \(id 102 of .*train2017.json\) cannot be read: .*truncated"):
        opened(root)[2]
    path.unlink()
    with pytest.raises(OSError, match=r"000000000102.jpg \(id 102 .* cannot be read: .*No such file"):
        opened(root)[2]


def test_an_image_of_another_size_is_named(root: Path) -> None:
    def change(content: dict) -> None:
        content["images"][0]["height"] = 61
        del content["annotations"][1]  # its run lengths would be of another size than the image

    with pytest.raises(ValueError, match=r"000000000100.jpg \(id 100\) is 60 x 80 pixels .* says 61 x 80"):
        opened(root, change=change)[0]


def test_a_file_that_is_no_annotation_file(tmp_path: Path) -> None:
    path = tmp_path / "instances.json"
    with pytest.raises(OSError, match=r"instances.json cannot be read"):
        CocoInstances(path, tmp_path)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"instances.json is not JSON"):
        CocoInstances(path, tmp_path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="lacks images, annotations, categories"):
        CocoInstances(path, tmp_path)


def save_turned(path: Path, orientation: int) -> None:
    """Store an image so that its EXIF orientation turns it back."""
    turn = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(path) as opened:
        opened.transpose(turn).save(path, quality=100, subsampling=0, exif=exif)


def test_an_image_is_turned_if_its_annotations_mean_the_upright_one(root: Path) -> None:
    before = opened(root)[0]
    save_turned(root / "train2017" / "000000000100.jpg", 6)
    image, target = opened(root)[0]
    assert (image - before[0]).abs().mean() < 0.05
    assert torch.equal(target["masks"], before[1]["masks"])


def test_an_image_is_as_it_is_stored_if_its_annotations_mean_that(root: Path) -> None:
    path = root / "train2017" / "000000000100.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(path) as stored:
        stored.save(path, exif=exif)
    assert opened(root)[0][0].shape == (3, 60, 80)
    save_turned(path, 3)
    with pytest.raises(
        ValueError, match=r"000000000100.jpg \(id 100 .* does not tell whether .* stored or of the upright"
    ):
        opened(root)[0]


def test_compressed_run_lengths(root: Path) -> None:
    expected = opened(root)[1][1]["masks"]

    def compress(content: dict) -> None:
        for one in content["annotations"][1::2]:
            height, width = one["segmentation"]["size"]
            encoded = mask.frPyObjects(one["segmentation"], height, width)
            one["segmentation"] = {"size": encoded["size"], "counts": encoded["counts"].decode()}

    assert torch.equal(opened(root, change=compress)[1][1]["masks"], expected)


def test_an_annotation_with_the_id_0_is_evaluated(root: Path) -> None:
    """pycocotools takes a match with it for none."""

    def from_zero(content: dict) -> None:
        for number, one in enumerate(content["annotations"]):
            one["id"] = number

    dataset = opened(root, change=from_zero)
    outputs = [
        {**target, "masks": target["masks"][:, None].float(), "scores": torch.ones(len(target["labels"]))}
        for _, target in (dataset[index] for index in range(len(dataset)))
    ]
    found = average_precision(
        dataset.api, dataset.image_ids, dataset.category_ids, [encode_detections(output) for output in outputs]
    )
    assert found["box_AP"] == found["mask_AP"] == 1.0


def test_a_part_shares_the_annotations(root: Path) -> None:
    whole = opened(root)
    part = whole.select(range(4, 6))
    assert part.image_ids == [104, 105]
    assert part.api is whole.api
    assert torch.equal(part[0][1]["masks"], whole[4][1]["masks"])
    with pytest.raises(ValueError, match="must hold at least one of its 6 images"):
        whole.select(range(0))


def test_nothing_is_printed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened(root)
    assert capsys.readouterr().out == ""
    assert make_content(2)["categories"][1]["id"] == 3
