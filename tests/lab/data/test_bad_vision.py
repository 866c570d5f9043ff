"""Bad input of the vision tasks: every case is an error of one line that names the file, and nothing is half written.

Each case runs in a process of its own, for before they were checked some crashed it and some never ended.
"""

import json
import os
import pickle
import resource
import socket
import struct
import tarfile
import zlib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import timm
import yaml
from PIL import Image

from preconditioned_attention.lab.data.cifar10 import read_cifar10
from preconditioned_attention.lab.data.coco import CocoInstances
from preconditioned_attention.lab.data.digit_scenes import DigitScenes, write_digit_scenes
from preconditioned_attention.lab.data.images import check_same_classes, open_images
from preconditioned_attention.lab.data.pathfinder import PathfinderOptions, read_pathfinder, write_pathfinder
from preconditioned_attention.lab.inspection.inputs import make_inputs
from preconditioned_attention.lab.tasks import make_task
from tests.helpers.coco_trees import write_tree
from tests.helpers.digits_task import digits_options
from tests.helpers.forked import command, outcome
from tests.helpers.image_trees import write_folders

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the cases run in forked processes")


@pytest.fixture(scope="module", autouse=True)
def _imports() -> None:
    """Import what the cases need once, and not in each of their processes."""
    for name in (
        *("accelerate", "datasets", "pycocotools.coco", "pycocotools.mask", "rich.progress", "scipy.ndimage"),
        *("sklearn.datasets", "sklearn.model_selection", "timm.data", "timm.loss", "timm.optim", "timm.scheduler"),
        *("torchvision.models.detection", "torchvision.transforms.v2", "torchvision.tv_tensors", "tyro"),
        *(f"preconditioned_attention.cli.{own}" for own in ("data", "inspect", "single_run", "train")),
        *(
            f"preconditioned_attention.lab.{own}"
            for own in ("data.coco_augmentation", "models.detection_heads", "training")
        ),
    ):
        import_module(name)


JSON = "instances_train2017.json"


class Case(NamedTuple):
    """A bad input: ``run`` gets a folder, makes the input in it and reads it; the message holds every of ``words``."""

    name: str
    run: Callable[[Path], object]
    words: tuple[str, ...]


def check(case: Case, folder: Path) -> None:
    """Run a case: an error of one line, with its words, that exits with 2, and no result or temporary file."""
    ended = outcome(lambda: case.run(folder))
    assert ended.exits_with_2, ended
    assert "\n" not in ended.message
    for word in case.words:
        assert word in ended.message, ended
    left = [path.name for path in folder.rglob("*") if path.name == "result.json" or ".writing" in path.name]
    assert left == []


def parametrized(cases: list[Case]) -> Any:
    assert len({case.name for case in cases}) == len(cases)
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


# COCO: annotations. Annotation 3 is a polygon on image 101, annotation 4 run lengths on the same, of 80 x 60 pixels.


def coco(
    change: Callable[[dict], object], *, text: Callable[[str], str] = lambda text: text
) -> Callable[[Path], object]:
    """Open a tree whose content was changed, first as values, then as text."""

    def run(folder: Path) -> None:
        root = write_tree(folder / "coco", train=3, val=1)
        path = root / "annotations" / JSON
        content = json.loads(path.read_text())
        change(content)
        path.write_text(text(json.dumps(content)))
        CocoInstances(path, root / "train2017", training=True)

    return run


def polygon(name: str, value: object) -> Case:
    run = coco(lambda content: content["annotations"][2].update(segmentation=value))
    return Case(f"polygon {name}", run, (JSON, "annotation 3 "))


def run_lengths(name: str, **values: object) -> Case:
    run = coco(lambda content: content["annotations"][3]["segmentation"].update(values))
    return Case(f"run lengths {name}", run, (JSON, "annotation 4 "))


def annotation(name: str, *words: str, **values: object) -> Case:
    return Case(f"annotation {name}", coco(lambda c: c["annotations"][2].update(values)), (JSON, *words))


def without(key: str) -> Case:
    run = coco(lambda content: content["annotations"][2].pop(key))
    return Case(f"annotation without {key}", run, (JSON, "annotation 3 ", key) if key != "id" else (JSON, "annotation"))


def image(name: str, **values: object) -> Case:
    return Case(f"image {name}", coco(lambda c: c["images"][1].update(values)), (JSON, "image 101 ", *values))


def written(name: str, text: Callable[[str], str], *words: str) -> Case:
    return Case(f"file {name}", coco(lambda content: None, text=text), (JSON, *words))


SQUARE = [5, 6, 25, 6, 25, 36, 5, 36]
RUNS = [4800]  # of the image of annotation 4, as one run
ANNOTATIONS = [
    polygon("of 1e30", [[1e30, *SQUARE[1:]]]),
    polygon("of minus 1e30", [[5, -1e30, *SQUARE[2:]]]),
    polygon("far to the right", [[605, *SQUARE[1:]]]),
    polygon("two pixels below", [[*SQUARE[:-1], 82.5]]),
    polygon("above", [[5, -40, *SQUARE[2:]]]),
    polygon("of an integer that no float holds", [[10**400, *SQUARE[1:]]]),
    polygon("with an odd count", [SQUARE[:-1]]),
    polygon("of two points", [SQUARE[:4]]),
    polygon("of no point", [[]]),
    polygon("missing from the list", []),
    polygon("not in a list of its own", SQUARE),
    polygon("of strings", [["5", *SQUARE[1:]]]),
    polygon("with a boolean", [[True, *SQUARE[1:]]]),
    polygon("of null", [None]),
    polygon("second of three fewer", [SQUARE, SQUARE[:2]]),
    polygon("null", None),
    polygon("a string", "0WV10"),
    polygon("a number", 3),
    Case(
        "polygon NaN",
        coco(lambda c: c["annotations"][2].update(segmentation=[[float("nan"), *SQUARE[1:]]])),
        (JSON, "NaN"),
    ),
    Case(
        "polygon Infinity",
        coco(lambda c: c["annotations"][2].update(segmentation=[[float("inf"), *SQUARE[1:]]])),
        (JSON,),
    ),
    Case(
        "polygon 1e999",
        coco(
            lambda c: c["annotations"][2].update(segmentation=[[424242, 6]]),
            text=lambda t: t.replace("424242", "1e999"),
        ),
        (JSON, "annotation 3 "),
    ),
    run_lengths("of a smaller image", size=[40, 60], counts=[2400]),
    run_lengths("of a larger image", size=[800, 600], counts=[480000]),
    run_lengths("turned", size=[60, 80]),
    run_lengths("with a size of floats", size=[80.0, 60.0]),
    run_lengths("without a size", size=None),
    run_lengths("with a negative run", counts=[4900, -100]),
    run_lengths("too long", counts=[4801]),
    run_lengths("too short", counts=[4799]),
    run_lengths("far too long", counts=[2**40]),
    run_lengths("of floats", counts=[4800.0]),
    run_lengths("of booleans", counts=[True] * 4800),
    run_lengths("null", counts=None),
    run_lengths("empty", counts=[]),
    run_lengths("an empty string", counts=""),
    run_lengths("with other characters", counts="0 V10"),
    run_lengths("with umlauts", counts="äöü"),
    run_lengths("with a byte of zero", counts="0\0"),
    run_lengths("that end within a number", counts="oooo"),
    run_lengths("of one huge number", counts="o" * 40 + "0"),
    run_lengths("compressed, of another sum", counts="`U4"),
    run_lengths("compressed, with a negative run", counts="O`U4"),
    annotation("box of inf", "annotation 3 ", bbox=[10**400, 6, 20, 30]),
    annotation("box of three", "annotation 3 ", bbox=[5, 6, 20]),
    annotation("box of strings", "annotation 3 ", bbox=["5", 6, 20, 30]),
    annotation("box of booleans", "annotation 3 ", bbox=[True, 6, 20, 30]),
    annotation("box null", "annotation 3 ", bbox=None),
    annotation("box with a negative width", "annotation 3 ", bbox=[5, 6, -20, 30]),
    annotation("box outside", "annotation 3 ", bbox=[5, 6, 20, 300]),
    annotation("box of 1e30", "annotation 3 ", bbox=[5, 6, 1e30, 30]),
    annotation("iscrowd 2", "annotation 3 ", "iscrowd", iscrowd=2),
    annotation("iscrowd 0.5", "annotation 3 ", "iscrowd", iscrowd=0.5),
    annotation("iscrowd a string", "annotation 3 ", "iscrowd", iscrowd="0"),
    annotation("iscrowd null", "annotation 3 ", "iscrowd", iscrowd=None),
    annotation("negative area", "annotation 3 ", "area", area=-1),
    annotation("area a string", "annotation 3 ", "area", area="600"),
    annotation("id twice", "annotation 1 ", "twice", id=1),
    annotation("id a string", "annotation 'x3' ", "integer", id="x3"),
    annotation("id a float", "annotation 3.0 ", "integer", id=3.0),
    annotation("id a boolean", "annotation True ", "integer", id=True),
    annotation("id null", "annotation None ", "integer", id=None),
    annotation("id beyond 64 bits", "annotation 1180591620717411303424 ", "integer", id=2**70),
    annotation("image_id a string", "annotation 3 ", "'101'", image_id="101"),
    annotation("image_id a list", "annotation 3 ", "[101]", image_id=[101]),
    annotation("image_id a float", "annotation 3 ", "101.0", image_id=101.0),
    annotation("image_id unknown", "annotation 3 ", "7", image_id=7),
    annotation("category_id a boolean", "annotation 3 ", "True", category_id=True),
    annotation("category_id unknown", "annotation 3 ", "2", category_id=2),
    annotation("category_id an object", "annotation 3 ", "category", category_id={}),
    *map(without, ("id", "image_id", "category_id", "bbox", "segmentation", "area", "iscrowd")),
    Case("annotation not an object", coco(lambda c: c["annotations"].append(5)), (JSON, "annotation number 6 ")),
    Case("image id twice", coco(lambda c: c["images"].append(dict(c["images"][0]))), (JSON, "image 100 ", "twice")),
    Case("category id twice", coco(lambda c: c["categories"].append({"id": 3})), (JSON, "category 3 ", "twice")),
    Case("category id a string", coco(lambda c: c["categories"].append({"id": "4"})), (JSON, "category '4' ")),
    Case("image not an object", coco(lambda c: c["images"].append("x.jpg")), (JSON, "image number 3 ")),
    image("width a string", width="60"),
    image("height of zero", height=0),
    image("width a float", width=60.0),
    image("height negative", height=-80),
    image("file_name a number", file_name=101),
    image("file_name empty", file_name=""),
    image("file_name with a byte of zero", file_name="a\0.jpg"),
    image("file_name half of a surrogate", file_name="\ud800.jpg"),
    Case(
        "image without a file_name", coco(lambda c: c["images"][1].pop("file_name")), (JSON, "image 101 ", "file_name")
    ),
    written("truncated", lambda text: text[: len(text) // 2], "not JSON"),
    written("empty", lambda text: "", "not JSON"),
    written("a list", lambda text: "[]", "lacks images"),
    written("a number", lambda text: "3", "lacks images"),
    written("of deep nesting", lambda text: "[" * 100_000, "not JSON"),
    written("with a key twice", lambda text: text.replace('"area": 600', '"area": 600, "area": 6', 1), "'area' twice"),
    written("with a number of many digits", lambda text: text.replace("600", "6" * 5000, 1), "not JSON"),
    written("without categories", lambda text: text.replace('"categories"', '"kinds"'), "lacks categories"),
    Case("images an object", coco(lambda c: c.update(images={"id": 1})), (JSON, "images must be a list")),
    Case("annotations null", coco(lambda c: c.update(annotations=None)), (JSON, "annotations must be a list")),
]


@parametrized(ANNOTATIONS)
def test_annotations(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


def replaced(make: Callable[[Path], object], name: str = JSON) -> Callable[[Path], object]:
    """Open and read a tree in which ``make`` has put something else in place of a file."""

    def run(folder: Path) -> None:
        root = write_tree(folder / "coco", train=3, val=1)
        path = next(root.rglob(name))
        path.unlink()
        make(path)
        dataset = CocoInstances(root / "annotations" / JSON, root / "train2017", training=True)
        for number in range(len(dataset)):
            dataset[number]

    return run


def make_socket(path: Path) -> None:
    os.chdir(path.parent)  # the path of a socket may have 107 characters
    socket.socket(socket.AF_UNIX).bind(path.name)


def claim_size(path: Path, *, side: int = 2**16) -> None:
    """A PNG file of a few bytes whose header claims many pixels."""
    body = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(body)) + b"IHDR" + body + struct.pack(">I", zlib.crc32(b"IHDR" + body))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 9) + b"IDAT" + zlib.compress(b"\0") + b"\0" * 4)


def write_frames(path: Path) -> None:
    frames = [Image.new("L", (80, 60), 9 * number) for number in range(3)]
    frames[0].save(path, "GIF", save_all=True, append_images=frames[1:])


def turn_around(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.new("RGB", (80, 60)).save(path, "JPEG", exif=exif)


NOT_AN_IMAGE: dict[str, Callable[[Path], object]] = {
    "a FIFO": os.mkfifo,
    "a socket": make_socket,
    "a folder": Path.mkdir,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "empty": Path.touch,
    "text": lambda path: path.write_text("no image"),
    "truncated": lambda path: path.write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF\x00"),
    "a bomb": claim_size,
    "above the warning for bombs": lambda path: claim_size(path, side=10_000),
    "of floats": lambda path: Image.new("F", (80, 60)).save(path, "TIFF"),
    "of 32-bit integers": lambda path: Image.new("I", (80, 60)).save(path, "TIFF"),
    "of several frames": write_frames,
}
COCO_FILES = [
    *(
        Case(f"image {name}", replaced(make, "*100.jpg"), ("000000000100.jpg", "100", JSON))
        for name, make in NOT_AN_IMAGE.items()
    ),
    Case("image missing", replaced(lambda path: None, "*100.jpg"), ("000000000100.jpg", "100", JSON)),
    Case("image turned around", replaced(turn_around, "*100.jpg"), ("000000000100.jpg", "100", "EXIF")),
    Case(
        "image of another size",
        replaced(lambda p: Image.new("L", (9, 9)).save(p), "*100.jpg"),
        ("000000000100.jpg", "9 x 9"),
    ),
    *(
        Case(f"annotations {name}", replaced(NOT_AN_IMAGE[name]), (JSON,))
        for name in (
            "a FIFO",
            "a socket",
            "a folder",
            "a device",
            "a link to nothing",
            "a link to itself",
            "empty",
            "text",
        )
    ),
    Case("annotations not UTF-8", replaced(lambda path: path.write_bytes(b'{"images": "\xff"}')), (JSON, "utf-8")),
    Case("annotations missing", replaced(lambda path: None), (JSON, "No such file")),
]


@parametrized(COCO_FILES)
def test_files_of_coco(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


# Folders of images. The first class is n01440764.


def folders(make: Callable[[Path], object], dataset: str = "") -> Callable[[Path], object]:
    """Open and read a split in whose first class ``make`` has put ``bad.png``."""

    def run(folder: Path) -> None:
        root = write_folders(folder / "images", train=1, val=1)
        make(root / "train" / "n01440764" / "bad.png")
        images = open_images(dataset, root, "train")
        for number in range(len(images)):
            images.read(number)

    return run


def loop(path: Path) -> None:
    (path.parent / "again").symlink_to("..", target_is_directory=True)


def two_loops(path: Path) -> None:
    """Without a check a reader follows them some 2**40 times."""
    for name in "ab":
        (path.parent.parent.parent / "train" / "empty").mkdir(exist_ok=True)
        (path.parent.parent.parent / "train" / "empty" / name).symlink_to("..", target_is_directory=True)


def nest(path: Path) -> None:
    (path.parent / "inner").mkdir()
    Image.new("RGB", (4, 4)).save(path.parent / "inner" / "bad.png")


def beside(name: str) -> Callable[[Path], object]:
    return lambda path: Image.new("L", (4, 4)).save(path.with_name(name))


def empty_class(path: Path) -> None:
    (path.parent.parent / "n09").mkdir()


def hidden_files(path: Path) -> None:
    empty_class(path)
    for name in (".DS_Store", ".png"):
        (path.parent.parent / "n09" / name).touch()


def outside(path: Path) -> None:
    Image.new("RGB", (4, 4)).save(path.parent.parent / "bad.png")


def bytes_of_latin_1(path: Path) -> None:
    Path(os.fsdecode(os.fsencode(path.parent) + b"/bad\xe9.png")).touch()


def tar_of_fifo(folder: Path) -> object:
    os.mkfifo(folder / "train.tar")
    return open_images("", folder, "train")


def nested_tar(folder: Path) -> object:
    root = write_folders(folder / "images", train=1, val=1)
    with tarfile.open(folder / "train.tar", "w") as tar:
        for file in (root / "train").rglob("*.JPEG"):
            tar.add(file, arcname=f"{file.parent.name}/images/{file.name}")
    return open_images("", folder, "train")


def other_classes(folder: Path) -> None:
    root = write_folders(folder / "images", train=1, val=1)
    (root / "val" / "n01440764").rename(root / "val" / "other")
    check_same_classes(open_images("", root, "train"), open_images("", root, "val"), split="val")


FOLDERS = [
    *(Case(name, folders(make), ("bad.png",)) for name, make in NOT_AN_IMAGE.items()),
    *(
        Case(f"{name}, torchvision's reader", folders(NOT_AN_IMAGE[name], "torch/image_folder"), ("bad.png",))
        for name in ("a FIFO", "a bomb", "of floats", "empty")
    ),
    Case("a link to the folder above", folders(loop), ("again", "link")),
    Case("two links to the folder above", folders(two_loops), ("empty", "link")),
    Case("a folder within a class", folders(nest), ("bad.png", "within a class folder")),
    *(
        Case(f"a file {name}", folders(beside(name)), (name, "left out"))
        for name in ("bad.webp", "bad.TIF", "bad.gif", "bad.bmp")
    ),
    Case("a class without files", folders(empty_class), ("n09", "no image")),
    Case("a class of hidden files", folders(hidden_files), ("n09", "no image")),
    Case("an image outside of classes", folders(outside), ("train", "outside of class folders")),
    Case("a name that is not UTF-8", folders(bytes_of_latin_1), (r"bad\udce9.png",)),
    Case("a tar that is a FIFO", tar_of_fifo, ("train.tar", "a FIFO")),
    Case("a tar with one class in several folders", nested_tar, ("train.tar", "several folders")),
    Case("other classes in validation", other_classes, ("val", "n01440764", "other")),
    Case("an unknown dataset", folders(lambda path: None, "imagenet"), ("'imagenet'", "dataset must be")),
    Case("an unknown split of CIFAR-10", lambda folder: open_images("torch/cifar10", folder, "trian"), ("'trian'",)),
    Case(
        "torchvision's reader without splits",
        lambda folder: open_images("torch/folder", folder, "train"),
        ("no folder",),
    ),
]


@parametrized(FOLDERS)
def test_folders_of_images(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


# Options. What is wrong is found before anything is allocated, so an error comes at once.


def options(name: str, *words: str, task: str = "image-classification", **values: object) -> Case:
    return Case(f"{task} {name}", lambda folder: make_task(task, values), words)


def model(name: str, *words: str, task: str = "image-classification", **values: object) -> Case:
    return Case(f"{task} {name}", lambda folder: make_task(task, values).build_model(), words)


def data(name: str, *words: str, **values: object) -> Case:
    return Case(f"data {name}", lambda folder: make_task("image-classification", values).datasets(), words)


def unprocessed(name: str, *words: str, **values: object) -> Case:
    return options(name, *words, **{**digits_options(depth=1), **values})


VIT = {"model": "vit_tiny_patch16_224", "image_size": 32}
OPTIONS = [
    options("root of digits", "root='photos'", "dataset=''", root="photos", dataset="digits"),
    options("root without a dataset", "root='photos'", "dataset=''", root="photos"),
    options("train_split of digits", "train_split='all'", train_split="all"),
    options("validation_split of digits", "validation_split='test'", validation_split="test"),
    options("num_classes of digits", "num_classes", "100", num_classes=100),
    options("num_classes of one", "num_classes", num_classes=1),
    options("num_classes of none", "num_classes", num_classes=0),
    options("num_classes in model_options", "num_classes", model_options={"num_classes": 7}),
    options("split_seed without holdout", "split_seed=3", "holdout", dataset="", root="x", split_seed=3),
    options("split_seed too large", "split_seed", split_seed=2**32),
    options("image_size of 1e9", "image_size", image_size=1e9),
    options("image_size of 10**9", "image_size=1000000000", "GiB", image_size=10**9),
    options("crop_pct of 1e-9", "crop_pct=1e-09", "GiB", crop_pct=1e-9),
    options("std of zero", "std", std=[0.5, 0.0, 0.5]),
    options("model a number", "model", model=3),
    options("dataset a number", "dataset", dataset=3),
    options("root a number", "root", dataset="", root=3),
    options("pretrained a number", "pretrained", pretrained=1),
    options("mixing of zero", "mixup_alpha", mixing={"mixup_alpha": 0.0}),
    options("mixing in no way", "mode", "'whole'", mixing={"mode": "whole"}),
    options("mixing negative", "mixup_alpha", mixing={"mixup_alpha": -1.0}),
    options("schedule unknown", "'line'", schedule={"sched": "line"}),
    options("schedule of a string", "decay_rate", schedule={"sched": "step", "decay_rate": "x", "decay_epochs": 1}),
    unprocessed("unprocessed with image_size", "image_size must be 8, not 16", image_size=16),
    unprocessed("unprocessed with crop_pct", "crop_pct must be 0.875, not 1.0", crop_pct=1.0),
    unprocessed("unprocessed with mean", "mean must be", mean=[0.1, 0.1, 0.1]),
    unprocessed("unprocessed with interpolation", "interpolation must be", interpolation="nearest"),
    unprocessed("unprocessed with a patch of 0", "patch_size", model_options={"patch_size": 0}),
    unprocessed("unprocessed with a patch of x", "patch_size", model_options={"patch_size": "x"}),
    data("repeated 10**12 times", "repeated_augmentation", "1197", repeated_augmentation=10**12),
    data("unprocessed, repeated 1198 times", "1197", **digits_options(depth=1), repeated_augmentation=1198),
    data("holdout of all images", "holdout", "1197", holdout=1197),
    model("patch larger than the image", "3 x 8 x 8", **{**VIT, "image_size": 8}),
    model("img_size of another size", "3 x 32 x 32", **VIT, model_options={"img_size": 64}),
    model("in_chans of one", "3 x 32 x 32", **VIT, model_options={"in_chans": 1}),
    model("embed_dim of 300000", "GiB", **VIT, model_options={"embed_dim": 300_000, "depth": 1}),
    model("embed_dim beyond tensors", "embed_dim", **VIT, model_options={"embed_dim": 3 * 10**18, "depth": 1}),
    model("embed_dim negative", "embed_dim", **VIT, model_options={"embed_dim": -3}),
    model("num_heads of zero", "num_heads", **VIT, model_options={"num_heads": 0}),
    model("depth of 10**9", "depth", **VIT, model_options={"depth": 10**9}),
    model("pretrained a device", "/dev/zero", "a device", **VIT, pretrained="/dev/zero"),
    model("unknown option", "embed_dims", **VIT, model_options={"embed_dims": 3}),
    model("num_classes of 10**9", "GiB", **VIT, dataset="", root="x", num_classes=10**9),
    options("positions too few", "positions", task="lra-image", positions=100),
    options("positions of 10**12", "positions", "1000000000000", task="lra-image", positions=10**12),
    options("positions beyond tensors", "positions", task="lra-pathfinder", positions=10**18),
    options("positions too few", "positions", task="lra-pathfinder", positions=1000),
    options("depth of 10**9", "depth", task="lra-pathfinder", depth=10**9),
    options("split_seed", "split_seed", task="lra-pathfinder", split_seed=2**64),
    options("data a number", "data", task="lra-image", data=3),
    options("sides a number", "sides", task="coco", sides=800),
    options("sides of 10**9", "sides", "GiB", task="coco", sides=[10**9], longest=10**9),
    options("crop a number", "crop", task="coco", crop=1),
    options("root a number", "root", task="coco", root=3),
    options("model a list", "model", task="coco", model=[]),
    options("max_size of 10**9", "max_size", "GiB", task="coco", model={"max_size": 10**9}),
    options("anchor_sizes a number", "anchor_sizes", task="coco", model={"anchor_sizes": 32}),
    options("taps a number", "taps", task="coco", model={"taps": 3}),
    options("mask_layers of 10**9", "mask_layers", task="coco", model={"mask_layers": 10**9}),
    options("backbone a number", "backbone", task="coco", model={"backbone": 3}),
    options("backbone_options a list", "backbone_options", task="coco", model={"backbone_options": [1]}),
    options("pretrained a string", "pretrained", task="coco", model={"pretrained": "no"}),
    model("channels of 10**6", "channels", "GiB", task="coco", model={"channels": 10**6}),
    model("classes of 10**12", "classes", task="coco", classes=10**12),
    model("taps beyond the blocks", "taps (3, 5, 7, 99)", task="coco", model={"taps": [3, 5, 7, 99]}),
    model("unknown option of the backbone", "width", task="coco", model={"backbone_options": {"width": 3}}),
    options("image_size of 10**9", "image_size", "GiB", task="digit-scenes", image_size=10**9),
    options("root a number", "root", task="digit-scenes", root=3),
]


@parametrized(OPTIONS)
def test_options(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


# Datasets that are written.


def on_a_full_disk(write: Callable[[], object]) -> None:
    """No file may have more than 100 bytes; the error names no file, like that of a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    write()


def scenes(folder: Path, **values: Any) -> None:
    write_digit_scenes(folder / "scenes", DigitScenes(**{"count": 2, "held_out": 1, "image_size": 32, **values}))


def paths(folder: Path, **values: Any) -> Path:
    return write_pathfinder(folder / "pathfinder", PathfinderOptions(**{"count": 2, "difficulty": "easy", **values}))


def occupied(make: Callable[[Path], object], name: str, write: Callable[[Path], object]) -> Callable[[Path], object]:
    def run(folder: Path) -> None:
        make(folder / name)
        write(folder)

    return run


def generate(dataset: str, *arguments: str) -> Callable[[Path], object]:
    return lambda folder: command("data", dataset, "--output", folder / "out", *arguments)


WRITERS = [
    Case("scenes on a full disk", lambda folder: on_a_full_disk(lambda: scenes(folder)), ("scenes", "File too large")),
    Case(
        "paths on a full disk",
        lambda folder: on_a_full_disk(lambda: paths(folder)),
        ("curv_baseline", "File too large"),
    ),
    Case("scenes in place of a file", occupied(Path.touch, "scenes", scenes), ("scenes", "exists already")),
    Case(
        "scenes in place of a link to nothing",
        occupied(lambda p: p.symlink_to("x"), "scenes", scenes),
        ("scenes", "exists already"),
    ),
    Case("paths below a file", occupied(Path.touch, "pathfinder", paths), ("pathfinder", "cannot be written")),
    Case("scenes of 10**9 pixels", generate("digit-scenes", "--image-size", str(10**9)), ("image_size", "GiB")),
    Case("scenes of 31 pixels", generate("digit-scenes", "--image-size", "31"), ("image_size",)),
    Case("10**15 scenes", generate("digit-scenes", "--count", str(10**15)), ("count", "GiB", "out")),
    Case("no scenes", generate("digit-scenes", "--count", "0"), ("count",)),
    Case("10**15 paths", generate("pathfinder", "--count", str(10**15)), ("count", "GiB", "out")),
    Case(
        "paths by 10**6 processes",
        generate("pathfinder", "--count", "10", "--jobs", str(10**6)),
        ("processes", "1000000"),
    ),
    Case("paths of no difficulty", generate("pathfinder", "--difficulty", "none"), ("difficulty",)),
]


@parametrized(WRITERS)
def test_datasets_that_are_written(case: Case, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    check(case, tmp_path)
    made = {path.name for path in tmp_path.rglob("*")} - {path.name for path in before}
    assert made <= {"scenes", "pathfinder"}  # the parents, or what was there before
    assert not list(tmp_path.rglob("*.png"))


# CIFAR-10 and Pathfinder, as they are read.


def batch(**values: object) -> Callable[[Path], object]:
    def run(folder: Path) -> None:
        content = {"labels": [1, 2], "data": np.zeros((2, 3072), dtype=np.uint8), **values}
        (folder / "test_batch").write_bytes(pickle.dumps({name.encode(): value for name, value in content.items()}, 2))
        read_cifar10(folder, "test")

    return run


def at(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    def run(folder: Path) -> None:
        make(folder / name)
        read_cifar10(folder, "test")

    return run


def path_images(change: Callable[[Path], object]) -> Callable[[Path], object]:
    """Read a folder of ten gray images after ``change``."""

    def run(folder: Path) -> None:
        (folder / "imgs" / "0").mkdir(parents=True)
        (folder / "metadata").mkdir()
        lines = [f"imgs/0 sample_{n}.png {n} {n % 2} 1.0 6 2 2 0.5 1 1\n" for n in range(10)]
        for number in range(10):
            Image.new("L", (32, 32), number + 1).save(folder / "imgs" / "0" / f"sample_{number}.png")
        (folder / "metadata" / "0.npy").write_text("".join(lines))
        change(folder)
        images = read_pathfinder(folder)
        for number in range(len(images)):
            images.read(number)

    return run


def path_image(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / "imgs" / "0" / "sample_3.png"
        path.unlink()
        make(path)

    return path_images(change)


def table(content: Callable[[str], str]) -> Callable[[Path], object]:
    return path_images(lambda f: (f / "metadata" / "0.npy").write_text(content((f / "metadata" / "0.npy").read_text())))


def table_of_fifo(folder: Path) -> None:
    os.mkfifo(folder / "metadata" / "1.npy")


def few_paths(folder: Path) -> None:
    path_images(lambda inner: (inner / "metadata" / "0.npy").write_text("imgs/0 sample_0.png 0 1 1.0 6 2 2 0.5 1 1\n"))(
        folder / "curv_baseline"
    )
    make_task("lra-pathfinder", {"data": str(folder), "difficulty": "easy"}).datasets()


PIXELS = [
    Case(
        "batch with other keys",
        at("test_batch", lambda path: path.write_bytes(pickle.dumps({b"x": 1}, 2))),
        ("test_batch", "KeyError"),
    ),
    Case("batch of CIFAR-100", batch(labels=None, fine_labels=[1, 2]), ("test_batch", "labels must be a list")),
    Case("batch of a list", at("test_batch", lambda path: path.write_bytes(pickle.dumps([1], 2))), ("test_batch",)),
    Case(
        "batch of another shape", batch(data=np.zeros((2, 3, 32, 32), dtype=np.uint8)), ("test_batch", "(2, 3, 32, 32)")
    ),
    Case("batch of floats", batch(data=np.zeros((2, 3072))), ("test_batch", "float64")),
    Case("batch of a string", batch(data="x"), ("test_batch", "str")),
    Case("batch with a number for labels", batch(labels=2), ("test_batch", "labels must be a list")),
    Case("batch with labels of booleans", batch(labels=[1, True]), ("test_batch, image 1", "True")),
    Case("batch with labels of floats", batch(labels=[1, 2.0]), ("test_batch, image 1", "2.0")),
    Case("batch with a label of 10", batch(labels=[1, 10]), ("test_batch, image 1", "10")),
    Case("batch with one label", batch(labels=[1]), ("test_batch", "(1, 3072)")),
    Case("batch of nothing", at("test_batch", Path.touch), ("test_batch", "EOFError")),
    Case(
        "batch of code",
        at("test_batch", lambda path: path.write_bytes(pickle.dumps(os.system, 2))),
        ("test_batch", "not allowed"),
    ),
    Case("batch a FIFO", at("test_batch", os.mkfifo), ("test_batch",)),
    Case("parquet a FIFO", at("test-0.parquet", os.mkfifo), ("test-0.parquet", "a FIFO")),
    Case("parquet of text", at("test-0.parquet", lambda path: path.write_text("text")), ("test-0.parquet",)),
    Case("parquet of nothing", at("test-0.parquet", Path.touch), ("test-0.parquet",)),
    *(
        Case(f"path {name}", path_image(NOT_AN_IMAGE[name]), ("sample_3.png", "0.npy"))
        for name in ("a FIFO", "a folder", "a bomb", "of floats", "text", "a link to nothing")
    ),
    Case("path in color", path_image(lambda path: Image.new("RGB", (32, 32)).save(path)), ("sample_3.png", "RGB")),
    Case("path of 16 bits", path_image(lambda path: Image.new("I;16", (32, 32)).save(path)), ("sample_3.png", "I;16")),
    Case("path of another size", path_image(lambda path: Image.new("L", (33, 32)).save(path)), ("sample_3.png", "33")),
    Case(
        "paths listed twice",
        table(lambda text: text + text.splitlines()[3]),
        ("0.npy, line 11", "sample_3.png", "again"),
    ),
    Case(
        "paths without a label",
        table(lambda text: text.replace("_3.png 3 1", "_3.png 3 x")),
        ("0.npy, line 4", "label"),
    ),
    Case("paths in a FIFO", path_images(table_of_fifo), ("1.npy", "a FIFO")),
    Case("fewer than ten paths", few_paths, ("curv_baseline", "at least ten")),
]


@parametrized(PIXELS)
def test_images_of_the_long_range_arena(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


# The command line: the exit code is 2, and the folder of the run holds no result.


def train(make: Callable[[Path], object] = lambda path: None, **task_options: object) -> Callable[[Path], object]:
    """Train a recipe with these options of its task; FOLDER stands for a folder of images with what ``make`` adds."""

    def run(folder: Path) -> None:
        write_folders(folder / "images", train=2, val=1, size=16)
        make(folder / "images" / "train" / "n01440764" / "bad.png")
        given = {**VIT, "model_options": {"embed_dim": 12, "depth": 1, "num_heads": 2}, **task_options}
        given = {name: str(folder / "images") if value == "FOLDER" else value for name, value in given.items()}
        section = {"task": "image-classification", "task_options": given, "steps": 1, "batch_size": 2}
        recipe = {"train": {**section, "learning_rate": 1e-3}, "compare": {"seeds": [0], "learning_rates": [1e-3]}}
        (folder / "mine.yaml").write_text(yaml.safe_dump(recipe))
        command("train", folder / "mine.yaml", "--output", folder / "run")

    return run


def inspect(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def run(folder: Path) -> None:
        (folder / "photos").mkdir()
        make(folder / "photos" / "bad.png")
        model = timm.create_model("test_vit")
        make_inputs(model, "test_vit", images=folder / "photos", text=None, seed=0)

    return run


def inspect_by_command(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def run(folder: Path) -> None:
        (folder / "photos").mkdir()
        make(folder / "photos" / "bad.png")
        command("inspect", "test_vit", "--images", folder / "photos", "--output", folder / "page.html")

    return run


COMMANDS = [
    Case("a root without a dataset", train(root="FOLDER"), ("root=", "images", "dataset=''")),
    Case("a root of digits", train(root="FOLDER", dataset="digits"), ("root=", "images", "dataset=''")),
    Case("a root that is not there", train(root="nowhere", dataset=""), ("nowhere",)),
    Case(
        "a root on the command line",
        lambda folder: command("train", "digits/vit", "--task-options", "root=photos", "--output", folder / "run"),
        ("photos", "dataset=''"),
    ),
    Case("an image_size of 10**9", train(image_size=10**9), ("image_size=1000000000",)),
    Case("a patch larger than the image", train(image_size=8), ("3 x 8 x 8",)),
    Case("num_classes of 10**9", train(num_classes=10**9), ("num_classes", "1000000000")),
    Case("num_classes of another folder", train(root="FOLDER", dataset="", num_classes=4), ("num_classes", "3", "4")),
    *(
        Case(f"a class folder with {name}", train(NOT_AN_IMAGE[name], root="FOLDER", dataset=""), ("bad.png",))
        for name in ("a FIFO", "a folder", "a link to itself")
    ),
    *(Case(f"inspect images {name}", inspect(make), ("bad.png",)) for name, make in NOT_AN_IMAGE.items()),
    Case("inspect by command", inspect_by_command(os.mkfifo), ("bad.png", "a FIFO")),
    Case("inspect a folder without images", inspect(lambda path: None), ("photos", "no image")),
    Case(
        "the folder of another dataset",
        lambda folder: command(
            "train", "digit-scenes", "--task-options", f"root={write_tree(folder / 'coco')}", "--output", folder / "run"
        ),
        ("instances_train.json",),
    ),
]


@parametrized(COMMANDS)
def test_commands(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)
    assert list((tmp_path / "run").glob("*")) == []
    assert not (tmp_path / "page.html").exists()
