"""A tiny tree in COCO's layout: noise with bright rectangles, JPEG files, category ids with a gap."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CATEGORIES = [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}]
SIZES = [(60, 80), (80, 60), (64, 64)]  # height, width


def write_tree(root: Path, *, train: int = 6, val: int = 3) -> Path:
    """``root/{train,val}2017`` and ``root/annotations``; two objects per image, the second one as RLE."""
    (root / "annotations").mkdir(parents=True)
    for split, count in (("train2017", train), ("val2017", val)):
        (root / split).mkdir()
        content = make_content(count)
        rng = np.random.default_rng(count)
        for image in content["images"]:
            pixels = rng.integers(0, 120, (image["height"], image["width"], 3), dtype=np.uint8)
            for one in content["annotations"]:
                if one["image_id"] == image["id"]:
                    x, y, width, height = one["bbox"]
                    pixels[y : y + height, x : x + width] = 120 + 40 * one["category_id"]
            Image.fromarray(pixels).save(root / split / image["file_name"])
        write_annotations(root, split, content)
    return root


def make_content(count: int) -> dict[str, Any]:
    images, annotations = [], []
    for number in range(count):
        height, width = SIZES[number % len(SIZES)]
        image_id = 100 + number
        images.append({"id": image_id, "file_name": f"{image_id:012d}.jpg", "height": height, "width": width})
        x, y = 4 + number, 6
        polygon = [x, y, x + 20, y, x + 20, y + 30, x, y + 30]
        first = {"bbox": [x, y, 20, 30], "area": 600, "category_id": 1, "segmentation": [polygon]}
        start = 30 * height + 30  # column-major, as COCO counts
        runs = [start] + [16, height - 16] * 17 + [16, width * height - start - 17 * height - 16]
        second = {
            "bbox": [30, 30, 18, 16],
            "area": 288,
            "category_id": 3,
            "segmentation": {"size": [height, width], "counts": runs},
        }
        annotations += [
            {**one, "id": 2 * number + k, "image_id": image_id, "iscrowd": 0} for k, one in ((1, first), (2, second))
        ]
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


def write_annotations(root: Path, split: str, content: Any) -> Path:
    path = root / "annotations" / f"instances_{split}.json"
    path.write_text(json.dumps(content))
    return path
