"""Average precision of boxes and masks by pycocotools."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..._extras import require

KINDS = {"box": "bbox", "mask": "segm"}
NAMES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")  # the first six of what COCO summarizes
THRESHOLD = 0.5  # of a pixel's probability to belong to the mask

Detections = dict[str, list[Any]]


def encode_detections(output: Mapping[str, Tensor]) -> Detections:
    """One image's detections as plain values: boxes (left, top, width, height), scores, labels, masks as RLE.

    Args:
        output: ``boxes`` (corners) ``(N, 4)``, ``scores`` and ``labels`` ``(N,)``, ``masks`` ``(N, 1, H, W)``,
            probabilities: what torchvision's Mask R-CNN gives for an image.
    """
    codec, numpy = require("pycocotools.mask", extra="vision"), require("numpy", extra="vision")
    boxes = output["boxes"].double().cpu()
    masks = (output["masks"][:, 0] > THRESHOLD).byte().cpu().numpy()
    return {
        "boxes": [[left, top, right - left, bottom - top] for left, top, right, bottom in boxes.tolist()],
        "scores": output["scores"].double().tolist(),
        "labels": output["labels"].tolist(),
        "masks": codec.encode(numpy.asfortranarray(masks.transpose(1, 2, 0))),
    }


def average_precision(
    api: Any, image_ids: Sequence[int], category_ids: Sequence[int], detections: Sequence[Detections]
) -> dict[str, float]:
    """``box_AP``, ``box_AP50``, ``box_AP75``, ``box_AP_small``, ``_medium``, ``_large``, and the same for ``mask``.

    At most 100 detections per image count. A size of which the images hold no object is left out.

    Args:
        api: pycocotools' ``COCO`` with the true objects.
        image_ids: the images that are evaluated.
        category_ids: the category of each label, from label 1 on.
        detections: per image, in the same order, what :func:`encode_detections` gives.
    """
    codec = require("pycocotools.mask", extra="vision")
    results: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for image_id, one in zip(image_ids, detections, strict=True):
        columns = (one["boxes"], one["scores"], one["labels"], one["masks"])
        for box, score, label, mask in zip(*columns, strict=True):
            number = len(results["box"]) + 1
            own = {
                "id": number,
                "image_id": image_id,
                "category_id": category_ids[label - 1],
                "score": score,
                "iscrowd": 0,
            }
            results["box"].append({**own, "bbox": box, "area": box[2] * box[3]})
            results["mask"].append({**own, "bbox": box, "segmentation": mask, "area": float(codec.area(mask))})
    return {name: value for kind in KINDS for name, value in _evaluate(api, image_ids, results[kind], kind).items()}


def _evaluate(api: Any, image_ids: Sequence[int], results: list[dict[str, Any]], kind: str) -> dict[str, float]:
    coco, cocoeval = require("pycocotools.coco", extra="vision"), require("pycocotools.cocoeval", extra="vision")
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        found = coco.COCO()
        found.dataset = {**{key: api.dataset[key] for key in ("images", "categories")}, "annotations": results}
        found.createIndex()
        evaluation = cocoeval.COCOeval(api, found, KINDS[kind])
        evaluation.params.imgIds = list(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats = zip(NAMES, evaluation.stats, strict=False)
    return {f"{kind}_{name}": float(value) for name, value in stats if value >= 0}  # -1: no object of that size
