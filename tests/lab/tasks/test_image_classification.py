import dataclasses
import math
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import default_collate

from preconditioned_attention import precondition_
from preconditioned_attention.lab.data.digits import load_digits
from preconditioned_attention.lab.recipes import load_recipe
from preconditioned_attention.lab.tasks import ImageClassification, make_task
from preconditioned_attention.lab.training import Arm, TrainConfig, train
from preconditioned_attention.lab.training.randomness import seed_all
from tests.helpers.digits_task import digits_options
from tests.helpers.image_trees import WNIDS, write_folders, write_tars, write_torchvision
from tests.helpers.schedules import learning_rates

TINY: dict[str, Any] = {"embed_dim": 12, "depth": 1, "num_heads": 2}
VIT: dict[str, Any] = {"model": "vit_tiny_patch16_224", "model_options": {"patch_size": 8, **TINY}, "image_size": 16}
# The five ImageNet models made small: the same classes of timm's, fewer and narrower layers.
REDUCED: dict[str, dict[str, Any]] = {
    "vit_b": TINY,
    "deit_b": TINY,
    "swin_b": {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4},
    "xcit_m24": TINY,
    "davit_b": {"embed_dims": [16, 16], "depths": [1, 1], "num_heads": [2, 4]},
}
PARAMETERS = {
    "vit_b": 86_567_656,
    "deit_b": 86_567_656,
    "swin_b": 87_768_224,
    "xcit_m24": 84_395_752,
    "davit_b": 87_954_408,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folders(tmp_path_factory.mktemp("images") / "imagenet")


def of_folders(root: Path, **options: Any) -> ImageClassification:
    return ImageClassification(**{**VIT, "dataset": "", "root": str(root), **options})


def imagenet_task(name: str) -> ImageClassification:
    recipe = load_recipe(f"imagenet/{name}")
    task = make_task(recipe.train.task, recipe.train.task_options)
    assert isinstance(task, ImageClassification)
    return task


@pytest.mark.parametrize("name", PARAMETERS)
def test_full_models_have_the_published_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        model = imagenet_task(name).build_model()
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


LAYOUTS = [*((name, "folders") for name in PARAMETERS), ("vit_b", "tars"), ("vit_b", "torchvision")]


@pytest.mark.parametrize(("name", "layout"), LAYOUTS)
def test_imagenet_recipes_train_and_evaluate(name: str, layout: str, folders: Path, tmp_path: Path) -> None:
    writers = {"tars": write_tars, "torchvision": write_torchvision}
    root = writers[layout](tmp_path / "data", folders) if layout in writers else folders
    recipe = load_recipe(f"imagenet/{name}").train
    own = {"dataset": "torch/imagenet" if layout == "torchvision" else "", "root": str(root), "num_classes": 3}
    reduced = {**recipe.task_options.get("model_options", {}), **REDUCED[name]}
    config = dataclasses.replace(
        recipe.with_steps(3),
        task_options={**recipe.task_options, **own, "image_size": 32, "model_options": reduced},
        batch_size=4,
        precision="float32",
        workers=0,
    )
    result = train(config, tmp_path / "run", progress=False)
    assert len(result.losses) == 3
    assert all(math.isfinite(loss) for loss in result.losses)
    assert result.test.keys() == {"loss", "accuracy"}
    assert result.test["accuracy"] in [n / 6 for n in range(7)]


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["plain", "preconditioned"])
@pytest.mark.parametrize("name", PARAMETERS)
def test_a_step_of_the_full_model_is_finite(name: str, arm: str) -> None:
    task = imagenet_task(name)
    seed_all(0)
    model = task.build_model().train()
    if arm == "preconditioned":
        assert len(precondition_(model).converted) >= 12
    loss = task.loss(model, (torch.randn(2, 3, 224, 224), torch.tensor([1, 700])))
    loss.backward()
    assert loss.isfinite()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


def small_model(name: str) -> nn.Module:
    recipe = load_recipe(f"digits/{name}").train
    return make_task(recipe.task, recipe.task_options).build_model()


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("vit", {"Attention"}),
        ("swin", {"WindowAttention"}),
        ("xcit", {"XCA"}),
        ("davit", {"WindowAttention", "ChannelAttention"}),
    ],
)
def test_small_models_have_the_attention_of_their_family(name: str, classes: set[str]) -> None:
    model = small_model(name)
    precondition_(model)
    converted = {type(module).__name__ for module in model.modules() if hasattr(module, "preconditioner")}
    assert {next(known for known in classes if known in name) for name in converted} == classes


def test_the_small_swin_shifts_its_windows() -> None:
    blocks = [module for module in small_model("swin").modules() if type(module).__name__ == "SwinTransformerBlock"]
    first = [block for block in blocks if block.input_resolution == blocks[0].input_resolution]
    assert [math.prod(block.input_resolution) // math.prod(block.window_size) for block in first] == [4] * len(first)
    assert {block.shift_size for block in first} == {(0, 0), (2, 2)}


def test_any_model_learns_any_folder(folders: Path, tmp_path: Path) -> None:
    options = {
        "model": "resnet10t",
        "dataset": "",
        "root": str(folders),
        "image_size": 32,
        "augmentation": {"hflip": 0},
    }
    config = TrainConfig(
        task="image-classification", task_options=options, steps=15, batch_size=6, learning_rate=3e-3, warmup_steps=1
    )
    result = train(config, tmp_path, progress=False)
    assert result.test["accuracy"] == 1.0  # the classes differ in color
    assert result.model.num_classes == 3


def test_evaluation_images_are_the_center_crop(folders: Path) -> None:
    task = of_folders(folders, crop_pct=0.5)
    image, label = task.datasets().validation[3]
    assert (image.shape, label) == ((3, 16, 16), 1)
    center, _ = of_folders(folders, crop_pct=1.0).datasets().validation[3]
    assert not torch.equal(image, center)
    other, _ = of_folders(folders, augmentation={"hflip": 1.0, "scale": [0.1, 0.2]}, crop_pct=0.5).datasets().test[3]
    assert torch.equal(other, image)
    red, green = image.mean(dim=(1, 2))[:2] * torch.tensor(task.std[:2]) + torch.tensor(task.mean[:2])
    assert green > red + 0.4


def test_augmentation_is_drawn_from_the_global_generators(folders: Path) -> None:
    options = {"auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.5, "re_mode": "pixel"}
    dataset = of_folders(folders, augmentation=options).datasets().train

    def drawn(seed: int) -> torch.Tensor:
        seed_all(seed)
        return torch.stack([dataset[0][0] for _ in range(6)])

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    assert not torch.equal(drawn(1)[0], drawn(1)[1])


def test_a_resumed_run_sees_the_same_augmentations_and_mixtures(folders: Path, tmp_path: Path) -> None:
    options = {
        **VIT,
        "dataset": "",
        "root": str(folders),
        "augmentation": {"auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.5},
        "mixing": {"mixup_alpha": 0.8, "cutmix_alpha": 1.0},
        "repeated_augmentation": 3,
    }
    config = TrainConfig(
        task="image-classification",
        task_options=options,
        steps=6,
        batch_size=4,
        learning_rate=1e-2,
        checkpoint_every=3,
        evaluate_every=2,
        keep_checkpoints=9,
    )
    whole = train(config, tmp_path / "run", progress=False)
    (tmp_path / "run" / "checkpoints" / "step-00000006").rename(tmp_path / "gone")
    again = train(config, tmp_path / "run", resume=True, progress=False)
    assert again.losses == whole.losses
    assert again.test == whole.test
    torch.testing.assert_close(again.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)
    with_worker = train(dataclasses.replace(config, workers=1), tmp_path / "worker", progress=False)
    assert with_worker.losses == whole.losses


def test_held_out_images_are_not_trained_on(folders: Path) -> None:
    splits = of_folders(folders, holdout=5).datasets()
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (7, 5, 6)
    assert not set(splits.train.indices) & set(splits.validation.indices)
    assert splits.validation.indices != of_folders(folders, holdout=5, split_seed=1).datasets().validation.indices
    without = of_folders(folders).datasets()
    assert (len(without.train), len(without.validation), len(without.test)) == (12, 6, 6)
    with pytest.raises(ValueError, match="holdout must be less than the 12 training images; got 12"):
        of_folders(folders, holdout=12).datasets()


def test_digits_have_a_test_split_of_their_own() -> None:
    splits = ImageClassification(**VIT).datasets()
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (1197, 300, 300)
    held = ImageClassification(**VIT, holdout=200).datasets()
    assert (len(held.train), len(held.validation), len(held.test)) == (997, 200, 300)


def test_mixed_targets() -> None:
    class Recording(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.images = images.clone()
            return images.mean(dim=(2, 3)) @ torch.ones(3, 10)

    images, labels = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    plain = Recording()
    loss = ImageClassification(**VIT, label_smoothing=0.2).loss(plain, (images, labels))
    torch.testing.assert_close(loss, F.cross_entropy(plain(images), labels, label_smoothing=0.2))
    task = ImageClassification(**VIT, mixing={"mixup_alpha": 1.0}, label_smoothing=0.1)
    seed_all(3)
    mixed = Recording()
    loss = task.loss(mixed, (images.clone(), labels))
    weight = ((mixed.images[0] - images[3]) / (images[0] - images[3])).mean()
    assert 0 < weight < 1
    targets = weight * F.one_hot(labels, 10) + (1 - weight) * F.one_hot(labels.flip(0), 10)
    expected = -((0.9 * targets + 0.01) * mixed(mixed.images).log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(loss, expected)
    with pytest.raises(ValueError, match="mixing needs an even number of images in a micro-batch; got 3"):
        task.loss(plain, (images[:3], labels[:3]))


def test_values_per_example() -> None:
    logits = torch.eye(10)[[3, 2, 1]] + 0.1 * torch.arange(10)
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 10))
    model.forward = lambda images: logits  # type: ignore[method-assign]
    values = ImageClassification(**VIT).evaluate(model, (torch.zeros(3, 1), torch.tensor([3, 9, 0])))
    assert values["accuracy"].tolist() == [1, 0, 0]
    assert values["top5"].tolist() == [1, 1, 0]
    torch.testing.assert_close(values["loss"], F.cross_entropy(logits, torch.tensor([3, 9, 0]), reduction="none"))


def test_example_batch_is_spread_over_the_split(folders: Path) -> None:
    task = of_folders(folders)
    (images,) = task.example_batch(3)
    validation = task.datasets().validation
    assert torch.equal(images, torch.stack([validation[index][0] for index in (0, 2, 4)]))
    assert len(task.example_batch(100)[0]) == 6


def test_pictures_count_every_test_image(folders: Path) -> None:
    task = of_folders(folders)
    pictures = task.pictures(task.build_model())
    assert list(pictures) == ["confusion", "predictions"]
    assert "6 test images" in pictures["confusion"].description
    assert all(picture.png.startswith(b"\x89PNG") for picture in pictures.values())


def test_names_of_classes_that_pages_and_plots_cannot_hold_as_they_are(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "images", train=2, val=1)
    for split in ("train", "val"):
        for old, new in zip(WNIDS, (b"caf\xe9", b"$\\frac{$", b"two\nlines<b>"), strict=True):
            os.rename(os.fsencode(root / split / old), os.fsencode(root / split) + b"/" + new)
    options = {**VIT, "dataset": "", "root": str(root)}
    config = TrainConfig(task="image-classification", task_options=options, steps=1, batch_size=4, learning_rate=1e-3)
    result = train(config, tmp_path / "run", progress=False)
    assert list(result.pictures) == ["confusion", "predictions"]
    assert (tmp_path / "run" / "result.json").exists()
    assert of_folders(root).datasets().train.images.classes == (r"$\frac{$", r"caf\udce9", r"two\nlines<b>")


def test_pretrained_weights_from_a_file(tmp_path: Path) -> None:
    source = timm.create_model("vit_tiny_patch16_224", num_classes=10, patch_size=8, img_size=16, **TINY)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    model = ImageClassification(**VIT, pretrained=str(tmp_path / "weights.safetensors")).build_model()
    torch.testing.assert_close(model.state_dict()["blocks.0.attn.qkv.weight"], source.blocks[0].attn.qkv.weight.data)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        precondition_(model)
        assert not caught  # converting is no loading
        model.load_state_dict(source.state_dict())
    assert any("does not say that it was trained with preconditioned attention" in str(w.message) for w in caught)


def test_a_preconditioned_run_from_plain_weights_warns(folders: Path, tmp_path: Path) -> None:
    source = timm.create_model("vit_tiny_patch16_224", patch_size=8, img_size=16, **TINY)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    options = {**VIT, "dataset": "", "root": str(folders), "pretrained": str(tmp_path / "weights.safetensors")}
    config = TrainConfig(
        task="image-classification",
        task_options=options,
        precondition=Arm(),
        steps=1,
        batch_size=4,
        learning_rate=1e-3,
    )
    with pytest.warns(UserWarning, match="starts from pretrained weights and its attention is preconditioned"):
        result = train(config, tmp_path / "run", progress=False)
    assert (tmp_path / "run" / "pictures" / "confusion.png").exists()
    assert list(result.pictures) == ["confusion", "predictions"]


def test_pretrained_weights_that_cannot_be_had(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"pretrained weights of 'vit_tiny_patch16_224' could not be loaded .* a file"):
        ImageClassification(**VIT, pretrained=str(tmp_path / "none.safetensors")).build_model()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "vit_tin_patch16_224"}, r"unknown model of timm: 'vit_tin_patch16_224' \(did you mean 'vit_tiny"),
        ({"augmentation": {"auto_aug": "x"}}, r"unknown option in augmentation: 'auto_aug' \(did you mean 'auto_aug"),
        ({"augmentation": {"input_size": 3}}, "unknown option in augmentation: 'input_size'"),
        ({"augmentation": {"train_crop_mode": "x"}}, "timm makes no transform of augmentation="),
        ({"mixing": {"mixup": 1.0}}, r"unknown option in mixing: 'mixup' \(did you mean 'mixup_alpha'"),
        ({"optimizer": "adamx"}, "unknown optimizer of timm: 'adamx'"),
        ({"schedule": {"sched": "plateau"}}, "sched must be a function of the step"),
        ({"label_smoothing": 1.0}, "label_smoothing must be at least 0 and less than 1"),
        ({"crop_pct": 0}, "crop_pct must be more than 0"),
        ({"image_size": 0}, "image_size must be at least 1"),
        ({"repeated_augmentation": 0}, "repeated_augmentation must be at least 1"),
        ({"num_classes": 1}, "num_classes must be at least 2"),
        ({"interpolation": "bicubical"}, "interpolation='bicubical'"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageClassification(**{**VIT, **options})


def test_options_of_another_type() -> None:
    with pytest.raises(TypeError, match="mean must be three numbers, one per channel; got"):
        ImageClassification(mean=0.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="augmentation must be a mapping of options; got 3"):
        ImageClassification(augmentation=3)  # type: ignore[arg-type]


def test_data_that_does_not_fit(folders: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_classes must be the 3 classes of the training split; got 1000"):
        of_folders(folders, num_classes=1000).datasets()
    root = write_folders(tmp_path / "other")
    (root / "val" / WNIDS[1]).rename(root / "val" / "n09")
    with pytest.raises(ValueError, match=r"classes of the validation split .* 1 missing \(n01443537\)"):
        of_folders(root).datasets()


def test_a_truncated_image_stops_the_run_and_is_named(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "data")
    for path in (root / "train").rglob("*_0.JPEG"):
        path.write_bytes(path.read_bytes()[:600])
    options = {**VIT, "dataset": "", "root": str(root)}
    config = TrainConfig(task="image-classification", task_options=options, steps=2, batch_size=12, learning_rate=1e-3)
    with pytest.raises(OSError, match=r"image .*_0\.JPEG of .*train cannot be read"):
        train(config, tmp_path / "run", progress=False)


UNPROCESSED = digits_options(embed_dim=8, depth=2, num_heads=2)


def test_without_preprocessing_the_digits_are_as_they_are() -> None:
    task = ImageClassification(**UNPROCESSED)
    splits, (train, validation, test) = task.datasets(), load_digits()
    for split, expected in ((splits.train, train), (splits.validation, validation), (splits.test, test)):
        assert torch.equal(split.tensors[0], expected.tensors[0])
    (images,) = task.example_batch(4)
    assert images.shape == (4, 1, 8, 8)
    assert torch.equal(images, validation.tensors[0][:4])
    assert len(task.example_batch(10_000)[0]) == 300


def test_without_preprocessing_the_model_sees_one_channel() -> None:
    options = digits_options(
        embed_dim=8, depth=2, num_heads=2, patch_size=4, proj_drop_rate=0.1, attn_drop_rate=0.2, mlp_ratio=3.0
    )
    model = ImageClassification(**options).build_model()
    assert model(torch.randn(5, 1, 8, 8)).shape == (5, 10)
    assert model.pos_embed.shape == (1, 5, 8)  # class token and 2 x 2 patches
    attention = model.blocks[0].attn
    assert (attention.num_heads, attention.attn_drop.p, attention.proj_drop.p) == (2, 0.2, 0.1)
    assert model.blocks[0].mlp.fc1.out_features == 24


def test_weights_come_from_the_global_generator() -> None:
    def build(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        model = ImageClassification(**UNPROCESSED).build_model()
        return torch.cat([parameter.flatten() for parameter in model.parameters()])

    assert torch.equal(build(1), build(1))
    assert not torch.equal(build(1), build(2))


def test_without_smoothing_the_loss_is_the_cross_entropy_of_every_image() -> None:
    task = ImageClassification(**UNPROCESSED)
    model = task.build_model().eval()
    images, labels = default_collate([task.datasets().train[index] for index in range(20)])
    values, logits = task.evaluate(model, (images, labels)), model(images)
    assert torch.equal(task.loss(model, (images, labels)), F.cross_entropy(logits, labels))
    torch.testing.assert_close(values["loss"], F.cross_entropy(logits, labels, reduction="none"))
    assert values["accuracy"].tolist() == (logits.argmax(dim=1) == labels).float().tolist()


def test_without_an_optimizer_of_timms_it_is_that_of_other_tasks() -> None:
    task, settings = ImageClassification(**UNPROCESSED), load_recipe("digits").train.optimizer_settings
    model = task.build_model()
    optimizer = task.make_optimizer(model, settings)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays[id(model.pos_embed)] == 0.3
    assert decays[id(model.norm.weight)] == 0.0
    rates = learning_rates(task.make_scheduler(optimizer, settings), 41)
    assert (rates[0], rates[40]) == (pytest.approx(3e-3 / 40), 3e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preprocessing": "some"}, "preprocessing must be one of 'timm', 'none'"),
        ({"holdout": 3}, "preprocessing='none' is for dataset='digits' without holdout and augmentation; .*holdout=3"),
        ({"augmentation": {"hflip": 0.0}}, "without holdout and augmentation"),
        ({"dataset": "", "root": "x"}, "preprocessing='none' is for dataset='digits'"),
        ({"schedule": {"sched": "cosine"}}, "schedule is for timm's optimizers"),
        ({"split_seed": -1}, "split_seed must be at least 0"),
        ({"model_options": {"patch_size": 3}}, "patch_size must divide the image size, 8; got .*3"),
    ],
)
def test_options_that_do_not_go_with_unprocessed_digits(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageClassification(**{**UNPROCESSED, **options})


@pytest.mark.parametrize("model_options", [{"embed_dim": 10}, {"proj_drop_rate": 1.5}])
def test_model_options_that_timm_refuses(model_options: dict) -> None:
    with pytest.raises(ValueError, match=r"timm makes no model 'vit_tiny_patch16_224' of model_options=\{.*\}: "):
        ImageClassification(**digits_options(**model_options)).build_model()
