import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from preconditioned_attention.lab.comparison.task_run import measure_conditioning
from preconditioned_attention.lab.data.digit_scenes import DigitScenes, write_digit_scenes
from preconditioned_attention.lab.recipes import load_recipe
from preconditioned_attention.lab.tasks import Coco, DigitScenesTask, detection, make_task
from preconditioned_attention.lab.tasks.detection import collate_examples
from preconditioned_attention.lab.training import ARMS, TrainConfig, train
from tests.helpers.coco_trees import write_tree
from tests.helpers.training_worker import Run, run_alone
from tests.lab.models.test_mask_rcnn import SMALL

SCENES = {"count": 6, "held_out": 3, "image_size": 64}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "scenes"
    write_digit_scenes(path, DigitScenes(**SCENES))
    return path


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("data") / "coco")


def scenes_config(scenes: Path, **changes: Any) -> TrainConfig:
    options = {"root": str(scenes), "model": SMALL, **SCENES}
    run = {"task": "digit-scenes", "task_options": options, "steps": 4, "batch_size": 2, "learning_rate": 1e-3}
    return TrainConfig.from_dict({**run, **changes})


def coco_recipe(name: str, root: Path) -> TrainConfig:
    """The recipe itself with a narrow backbone, on a tree of nine small images."""
    config = load_recipe(f"coco/mask_rcnn_xcit_{name}").train
    model = dict(config.task_options["model"])
    depth = max(model["taps"]) + 1
    assert model.pop("pretrained")  # nothing is downloaded here
    narrow = {"embed_dim": 32, "num_heads": 4}
    model["backbone_options"] = {**model["backbone_options"], **narrow}
    model |= {"channels": 16, "box_hidden": 32, "mask_channels": 16, "test_size": 64, "max_size": 96}
    assert depth in (12, 24)
    options = {
        **config.task_options,
        "root": str(root),
        "classes": 2,
        "kept_back": 2,
        "sides": (64, 96),
        "longest": 128,
    }
    return dataclasses.replace(
        config.with_steps(3),
        batch_size=2,
        warmup_steps=1,
        precision="float32",
        workers=0,
        task_options={**options, "model": model},
    )


@pytest.mark.parametrize("name", ["s12", "m24"])
def test_the_coco_recipe_trains_and_evaluates_on_a_tree_in_the_usual_layout(
    name: str, tree: Path, tmp_path: Path
) -> None:
    result = train(coco_recipe(name, tree), tmp_path / "run", progress=False)
    assert len(result.losses) == 3
    assert all(0 < loss < 100 for loss in result.losses)
    for split in (result.validation, result.test):
        assert {"box_AP", "box_AP50", "box_AP75", "mask_AP", "mask_AP50", "mask_AP75"} <= set(split)
        assert all(0 <= value <= 1 for value in split.values())
    assert (tmp_path / "run" / "pictures" / "detections.png").stat().st_size > 1000
    assert "data:image/png;base64" in (tmp_path / "run" / "report.html").read_text()


def test_the_splits_of_coco(tree: Path) -> None:
    splits = Coco(root=str(tree), classes=2, kept_back=2, sides=(64,)).datasets()
    assert splits.train.image_ids == [100, 101, 102, 103]
    assert splits.validation.image_ids == [104, 105]
    assert splits.test.image_ids == [100, 101, 102]
    assert splits.test.folder == tree / "val2017"
    images, targets = splits.collate([splits.train[0], splits.train[1]])
    assert len(images) == len(targets) == 2


def test_what_coco_refuses(tree: Path) -> None:
    with pytest.raises(ValueError, match=r"classes must be the number of categories in .*, 2; got 80"):
        Coco(root=str(tree)).datasets()
    with pytest.raises(ValueError, match="must hold at least one of its 6 images"):
        Coco(root=str(tree), classes=2, kept_back=6).datasets()
    with pytest.raises(OSError, match=r"instances_train2017.json cannot be read"):
        Coco(root=str(tree / "nothing"), classes=2).datasets()
    for options, message in (({"kept_back": 0}, "kept_back"), ({"sides": ()}, "sides"), ({"model": {"x": 1}}, "'x'")):
        with pytest.raises(ValueError, match=message):
            Coco(**options)


def test_a_resumed_run_is_bit_identical(scenes: Path, tmp_path: Path) -> None:
    config = scenes_config(scenes, steps=6, checkpoint_every=1, evaluate_every=3, precondition={"gradient": "full"})
    whole = run_alone(config, tmp_path / "whole")
    assert whole.ended_well, whole.errors
    killed = Run(config, tmp_path / "killed")
    killed.kill_at(3)
    resumed = run_alone(config, tmp_path / "killed", resume=True)
    assert resumed.ended_well, resumed.errors
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]
    assert _numbers(tmp_path / "whole") == _numbers(tmp_path / "killed")


def _numbers(folder: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


@pytest.mark.parametrize("arm", ARMS)
def test_arms_differ_in_the_backbone_alone(arm: str, scenes: Path, tmp_path: Path) -> None:
    result = train(scenes_config(scenes, steps=1, precondition=ARMS[arm]), tmp_path, progress=False)
    converted = [name for name, _ in result.model.named_modules() if name.endswith("preconditioner")]
    expected = [] if arm == "plain" else [f"backbone.body.model.blocks.{n}.attn.preconditioner" for n in range(4)]
    assert converted == expected


def test_pretrained_plain_weights_below_preconditioned_attention_warn(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No network here: the weights are random, and the task says that they are not."""
    monkeypatch.setattr(DigitScenesTask, "pretrained", True)
    with pytest.warns(UserWarning, match="starts from pretrained weights and its attention is preconditioned"):
        train(scenes_config(scenes, steps=1, precondition=ARMS["row"]), tmp_path / "one", progress=False)
    assert Coco(model={"pretrained": True}).pretrained
    assert not Coco().pretrained


def test_scenes_are_written_once_where_none_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = DigitScenesTask(model=SMALL, **SCENES).datasets()
    (root,) = (tmp_path / "runs" / "data").iterdir()
    written = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert len(first.train) == 6
    again = DigitScenesTask(model=SMALL, **SCENES).datasets()
    assert torch.equal(again.test[2][0], first.test[2][0])
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == written


def test_another_process_may_be_quicker_at_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def late(root: Path, options: DigitScenes) -> None:
        write_digit_scenes(root, options)
        write_digit_scenes(root, options)  # it is there by now

    monkeypatch.setattr(detection, "write_digit_scenes", late)
    assert len(DigitScenesTask(model=SMALL, **SCENES).datasets().train) == 6

    def full(root: Path, options: DigitScenes) -> None:
        raise OSError("no room")

    monkeypatch.setattr(detection, "write_digit_scenes", full)
    with pytest.raises(OSError, match="no room"):  # any other failure is passed on
        DigitScenesTask(model=SMALL, **{**SCENES, "count": 5}).datasets()


def test_a_folder_of_other_scenes_is_refused(scenes: Path) -> None:
    with pytest.raises(ValueError, match=r'holds other scenes .*"count": 6.*, not .*"count": 7'):
        DigitScenesTask(root=str(scenes), model=SMALL, **{**SCENES, "count": 7}).datasets()
    with pytest.raises(ValueError, match="classes must be 1"):
        DigitScenesTask(classes=3)


def test_the_example_batch_fits_the_model(scenes: Path, tree: Path) -> None:
    task = DigitScenesTask(root=str(scenes), model=SMALL, **SCENES)
    (images,) = task.example_batch(2)
    assert images.shape == (2, 3, 64, 64)
    with torch.no_grad():
        assert len(task.build_model().eval()(images)) == 2
    (images,) = Coco(root=str(tree), classes=2, kept_back=3).example_batch()  # of 60 x 80, 80 x 60 and 64 x 64
    assert images.shape == (3, 3, 80, 80)
    assert (images[0, :, 60:] == 0).all()


def test_attention_can_be_looked_at(scenes: Path) -> None:
    task = DigitScenesTask(root=str(scenes), model=SMALL, **SCENES)
    rows = measure_conditioning(task.build_model(), task.example_batch(2))
    assert [row["layer"] for row in rows] == [f"backbone.body.model.blocks.{number}.attn" for number in range(4)]


def test_the_loss_is_the_sum_of_five(scenes: Path) -> None:
    task = DigitScenesTask(root=str(scenes), model=SMALL, **SCENES)
    model, train_split = task.build_model(), task.datasets().train
    batch = collate_examples([train_split[0], train_split[1]])
    torch.manual_seed(0)
    losses = model(*batch)
    torch.manual_seed(0)
    torch.testing.assert_close(task.loss(model, batch), sum(losses.values()))


@pytest.mark.parametrize("name", ["digit-scenes", "digit-scenes-ten"])
def test_the_recipes_of_the_scenes_build(name: str) -> None:
    config = load_recipe(name).train
    task = make_task(config.task, config.task_options)
    assert task.classes == (1 if name == "digit-scenes" else 10)
    with torch.device("meta"):
        assert task.build_model().roi_heads.box_predictor.cls_score.out_features == task.classes + 1
