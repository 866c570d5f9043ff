import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from preconditioned_attention.lab.data.coco import CocoInstances
from preconditioned_attention.lab.tasks.detection_metrics import NAMES, average_precision, encode_detections
from tests.helpers.coco_trees import make_content

SIZE = 200


@pytest.fixture
def truth(tmp_path: Path) -> CocoInstances:
    """Squares of 20, 60 and 120 pixels in two images: small, medium and large."""
    annotations = []
    for image_id in (4, 9):
        for category, (left, side) in ((1, (2, 20)), (3, (30, 60)), (1, (75, 120))):
            polygon = [left, left, left + side, left, left + side, left + side, left, left + side]
            one = {"bbox": [left, left, side, side], "area": side**2, "segmentation": [polygon], "iscrowd": 0}
            annotations.append({**one, "id": len(annotations) + 1, "image_id": image_id, "category_id": category})
    images = [{"id": image_id, "file_name": f"{image_id}.png", "width": SIZE, "height": SIZE} for image_id in (4, 9)]
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({**make_content(0), "images": images, "annotations": annotations}))
    return CocoInstances(path, tmp_path)


def predict(truth: CocoInstances, shift: int, scores: Any = None) -> list[dict[str, torch.Tensor]]:
    """The true objects, moved to the right."""
    outputs = []
    for number, image_id in enumerate(truth.image_ids):
        own = truth.api.imgToAnns[image_id]
        boxes = torch.tensor([[x + shift, y, x + w + shift, y + h] for x, y, w, h in (one["bbox"] for one in own)])
        masks = torch.zeros(len(own), 1, SIZE, SIZE)
        for mask, (left, top, right, bottom) in zip(masks, boxes.tolist(), strict=True):
            mask[0, top:bottom, left : min(right, SIZE)] = 1
        labels = torch.tensor([truth.category_ids.index(one["category_id"]) + 1 for one in own])
        given = torch.full((len(own),), 0.9) if scores is None else torch.tensor(scores[number])
        outputs.append({"boxes": boxes.float(), "labels": labels, "scores": given, "masks": masks})
    return outputs


def measured(truth: CocoInstances, outputs: list[dict[str, torch.Tensor]]) -> dict[str, float]:
    detections = [encode_detections(one) for one in outputs]
    return average_precision(truth.api, truth.image_ids, truth.category_ids, detections)


def reference(truth: CocoInstances, outputs: list[dict[str, torch.Tensor]], kind: str, tmp_path: Path) -> list[float]:
    """The same by pycocotools' own path: a results file and ``loadRes``."""
    from pycocotools import mask as codec

    results = []
    for image_id, output in zip(truth.image_ids, outputs, strict=True):
        for box, label, score, mask in zip(*(output[k] for k in ("boxes", "labels", "scores", "masks")), strict=True):
            one: dict[str, Any] = {"image_id": image_id, "category_id": truth.category_ids[int(label) - 1]}
            one["score"] = float(score)
            left, top, right, bottom = box.tolist()
            if kind == "bbox":
                one["bbox"] = [left, top, right - left, bottom - top]
            else:
                encoded = codec.encode(np.asfortranarray((mask[0] > 0.5).numpy().astype(np.uint8)))
                one["segmentation"] = {**encoded, "counts": encoded["counts"].decode()}
            results.append(one)
    (tmp_path / "results.json").write_text(json.dumps(results))
    coco = COCO(truth.file)
    evaluation = COCOeval(coco, coco.loadRes(str(tmp_path / "results.json")), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats[:6].tolist()


def test_perfect_predictions(truth: CocoInstances) -> None:
    metrics = measured(truth, predict(truth, 0))
    assert set(metrics) == {f"{kind}_{name}" for kind in ("box", "mask") for name in NAMES}
    assert metrics == pytest.approx(dict.fromkeys(metrics, 1.0))


def test_shifted_predictions_have_the_precision_of_their_overlap(truth: CocoInstances) -> None:
    """Moved by 4 pixels, squares of 20, 60, 120 have IoU 16/24, 56/64, 116/124: at 4, 8, 9 of the ten thresholds."""
    metrics = measured(truth, predict(truth, 4))
    for kind in ("box", "mask"):
        assert metrics[f"{kind}_AP_small"] == pytest.approx(0.4)
        assert metrics[f"{kind}_AP_medium"] == pytest.approx(0.8)
        assert metrics[f"{kind}_AP_large"] == pytest.approx(0.9)
        assert metrics[f"{kind}_AP50"] == pytest.approx(1.0)
    assert measured(truth, predict(truth, 90))["box_AP"] == 0.0


@pytest.mark.parametrize("shift", [0, 4, 9, 30])
def test_numbers_are_those_of_the_reference(truth: CocoInstances, shift: int, tmp_path: Path) -> None:
    scores = torch.rand(2, 3, generator=torch.Generator().manual_seed(shift)).tolist()
    outputs = predict(truth, shift, scores)
    outputs[0] = {name: torch.cat([value, value[:2]]) for name, value in outputs[0].items()}  # two false positives
    metrics = measured(truth, outputs)
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        expected = reference(truth, outputs, kind, tmp_path)
        assert [metrics[f"{name}_{one}"] for one in NAMES] == expected


def test_no_detection_is_zero_and_no_object_of_a_size_is_left_out(truth: CocoInstances) -> None:
    nothing = [{name: value[:0] for name, value in one.items()} for one in predict(truth, 0)]
    assert set(measured(truth, nothing).values()) == {0.0}
    for one in truth.api.dataset["annotations"]:
        one["area"] = 100
    assert not {name for name in measured(truth, nothing) if name.endswith(("_medium", "_large"))}


def test_only_the_images_of_the_split_count(truth: CocoInstances) -> None:
    part = truth.select([1])
    assert measured(part, predict(part, 0))["mask_AP"] == pytest.approx(1.0)


def test_nothing_is_printed(truth: CocoInstances, capsys: pytest.CaptureFixture[str]) -> None:
    measured(truth, predict(truth, 0))
    assert capsys.readouterr().out == ""
