import sys
from pathlib import Path

import pytest
from PIL import Image

from preconditioned_attention.lab.data.images import TransformedImages, check_same_classes, find_split, open_images
from tests.helpers.image_trees import WNIDS, write_folders, write_tars, write_torchvision


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folders(tmp_path_factory.mktemp("folders") / "imagenet")


@pytest.fixture(scope="module")
def roots(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    parent = tmp_path_factory.mktemp("layouts")
    tars = write_tars(parent / "tars", folders)
    return {"": folders, "tars": tars, "torch/imagenet": write_torchvision(parent / "torchvision", folders)}


@pytest.mark.parametrize("layout", ["", "tars", "torch/imagenet"])
@pytest.mark.parametrize(("split", "count"), [("train", 12), ("validation", 6)])
def test_every_layout_gives_the_same_images(roots: dict[str, Path], layout: str, split: str, count: int) -> None:
    images = open_images("" if layout == "tars" else layout, roots[layout], split)
    assert images.classes == WNIDS
    assert len(images) == count
    read = [images.read(index) for index in range(count)]
    assert [label for _, label in read] == [label for label in range(3) for _ in range(count // 3)]
    expected = sorted((roots[""] / {"validation": "val"}.get(split, split)).rglob("*.JPEG"))
    for (image, _), path in zip(read, expected, strict=True):
        assert image.mode == "RGB"
        assert image.tobytes() == Image.open(path).convert("RGB").tobytes()


def test_a_part_of_the_images(folders: Path) -> None:
    images = open_images("", folders, "train")
    part = TransformedImages(images, lambda image: image.size, indices=[5, 0])
    assert [part[index] for index in range(len(part))] == [((48, 40), 1), ((48, 40), 0)]
    assert len(TransformedImages(images, lambda image: image.size)) == 12


def test_gray_images_become_rgb(tmp_path: Path) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    Image.new("L", (3, 2), 7).save(tmp_path / "train" / "a" / "gray.png")
    image, _ = open_images("", tmp_path, "train").read(0)
    assert (image.mode, image.getpixel((0, 0))) == ("RGB", (7, 7, 7))


@pytest.mark.parametrize("layout", ["", "torch/imagenet"])
def test_a_truncated_image_is_named(tmp_path: Path, layout: str) -> None:
    folders = write_folders(tmp_path / "folders")
    broken = sorted((folders / "train").rglob("*.JPEG"))[6]
    broken.write_bytes(broken.read_bytes()[:700])
    root = folders if layout == "" else write_torchvision(tmp_path / "torchvision", folders)
    images = open_images(layout, root, "train")
    images.read(5)
    with pytest.raises(OSError, match=rf"image .*{broken.name} of .*train.* cannot be read \(.*truncated"):
        images.read(6)


def test_a_truncated_image_in_a_tar_is_named(tmp_path: Path) -> None:
    folders = write_folders(tmp_path / "folders")
    broken = sorted((folders / "val").rglob("*.JPEG"))[0]
    broken.write_bytes(b"no image at all")
    with pytest.raises(OSError, match=rf"image .*{broken.name} of .*val\.tar cannot be read \(cannot identify"):
        open_images("", write_tars(tmp_path / "tars", folders), "validation").read(0)


def test_an_empty_split(tmp_path: Path) -> None:
    folders = write_folders(tmp_path / "folders", val=0)
    with pytest.raises(ValueError, match=r"val cannot be read as images in one folder per class: Found 0 images"):
        open_images("", folders, "validation")
    with pytest.raises(ValueError, match=r"val\.tar cannot be read as images in one folder per class"):
        open_images("", write_tars(tmp_path / "tars", folders), "validation")
    with pytest.raises(ValueError, match=r"cannot be read as the validation split of 'torch/imagenet'"):
        open_images("torch/imagenet", write_torchvision(tmp_path / "torchvision", folders), "validation")


def test_a_tar_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "train.tar").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"train\.tar cannot be read as images"):
        open_images("", tmp_path, "train")


def test_images_without_class_folders(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(ValueError, match="images outside of class folders; each must lie in the folder of its class"):
        open_images("", tmp_path, "validation")


def test_what_is_not_there(tmp_path: Path, folders: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"root: there is no folder .*nowhere"):
        open_images("", tmp_path / "nowhere", "train")
    with pytest.raises(FileNotFoundError, match="holds no folder or tar of the test split; looked for test"):
        open_images("", folders, "test")
    with pytest.raises(ValueError, match="root must be the folder that holds the images of dataset 'torch/imagenet'"):
        open_images("torch/imagenet", None, "train")
    with pytest.raises(ValueError, match=r"cannot be read as the train split of 'torch/imagenet': The archive .* not"):
        open_images("torch/imagenet", tmp_path, "train")
    with pytest.raises(ValueError, match="'torch/nothing'"):
        open_images("torch/nothing", folders, "train")


def test_streams_are_refused() -> None:
    with pytest.raises(ValueError, match="dataset 'wds/x' is a stream without random access"):
        open_images("wds/x", None, "train")


def test_hugging_face_datasets_need_their_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="pip install datasets"):
        open_images("hfds/ILSVRC/imagenet-1k", None, "train")


def test_hugging_face_datasets(tmp_path: Path, folders: Path) -> None:
    pytest.importorskip("datasets")
    images = open_images(f"hfds/{folders}", tmp_path, "validation")
    assert images.classes == WNIDS
    assert [images.read(index)[1] for index in range(len(images))] == [0, 0, 1, 1, 2, 2]
    assert images.read(0)[0].size == (48, 40)


def test_images_without_labels_are_named(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    (tmp_path / "set").mkdir()
    rows = {"image": [Image.new("RGB", (4, 4))] * 2, "label": [0, -1]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "set" / "train.parquet")
    images = open_images(f"hfds/{tmp_path / 'set'}", tmp_path / "cache", "train")
    assert images.read(0)[1] == 0
    with pytest.raises(
        OSError, match=r"image .* of train split of 'hfds/.*' cannot be read \(its label must be 0 to 1; got -1"
    ):
        images.read(1)


def test_names_of_splits(tmp_path: Path) -> None:
    (tmp_path / "valid").mkdir()
    assert find_split(tmp_path, "validation") == tmp_path / "valid"
    (tmp_path / "validation").mkdir()
    assert find_split(tmp_path, "validation") == tmp_path / "validation"


def test_classes_that_differ_between_splits(tmp_path: Path) -> None:
    train = open_images("", write_folders(tmp_path / "one"), "train")
    other = open_images("", write_folders(tmp_path / "two", classes=("n01440764", "n01443537", "n09")), "val")
    check_same_classes(train, train, split="validation")
    with pytest.raises(ValueError, match=r"validation split .* 1 missing \(n02102040\), 1 not in training \(n09\)"):
        check_same_classes(train, other, split="validation")
