"""Image classification with any model, augmentation, optimizer and schedule of timm, on any folder of images."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import default_collate

from ..._checks import check_integer, check_known, check_number
from ..._extras import require
from ...config import check_choice
from ..data.digits import DigitImages, check_split_seed, load_digits
from ..data.image_files import check_regular, one_line
from ..data.images import LabeledImages, TransformedImages, check_same_classes, open_images
from ..data.limits import check_memory
from ..models.weights_size import build_on_meta, check_depth
from ..reporting import Picture
from .classification_pictures import draw_pictures, spread
from .optimizer import OptimizerSettings
from .task import Splits, Task
from .timm_optimizer import check_optimizer, check_schedule, create_optimizer, create_scheduler

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Options of timm's functions that are set here, or that change the form of a batch.
_OWN_TRANSFORM = {
    *("input_size", "is_training", "interpolation", "mean", "std", "crop_pct", "crop_mode", "crop_border_pixels"),
    *("use_prefetcher", "normalize", "separate", "tf_preprocessing", "re_num_splits", "naflex", "patch_size"),
    *("max_seq_len", "patchify", "patchify_channels_last", "patchify_flatten"),
}
_OWN_MIXING = {"num_classes", "label_smoothing", "multi_label"}
TOP = 5
PREPROCESSING = ("timm", "none")
DIGIT_SIZE = 8  # pixels of an unprocessed image
HALVES = (0.5, 0.5, 0.5)  # what brings an unprocessed image from [-1, 1] to [0, 1]
MIXING_MODES = ("batch", "pair", "elem")
BYTES_PER_PIXEL = 3 * 4  # three channels in float32


@dataclass(frozen=True, kw_only=True)
class ImageClassification(Task):
    """The ``image-classification`` task.

    Args:
        model: a name that ``timm.create_model`` knows.
        model_options: its options.
        pretrained: True loads timm's weights for this model from the hub or its cache; a path loads that file.
        dataset: ``"digits"`` (comes with scikit-learn), ``""`` for folders or tars in ``root``, or a name of timm's
            with the prefix ``torch/`` or ``hfds/``; see :func:`preconditioned_attention.lab.data.images.open_images`.
        root: the folder that holds the data; None for ``"digits"``.
        train_split, validation_split: the names of the splits.
        holdout: so many images are taken from the training split for validation, and the validation split becomes
            the test split. With 0 the validation split is both, so what is selected on it is tested on it.
        split_seed: decides which images are held out.
        num_classes: outputs of the model; None: as many as the training split has classes.
        image_size: height and width that the model gets.
        crop_pct: for evaluation the image is resized so that the center crop is this part of its shorter side.
        interpolation: of every resizing.
        mean, std: of the three channels, for normalizing.
        augmentation: options of ``timm.data.create_transform`` for training.
        mixing: options of ``timm.data.Mixup``; empty: none. Micro-batches must be even then.
        label_smoothing: the part of the target that is spread over all classes.
        repeated_augmentation: how often each image of an epoch comes in a row, differently augmented; the epoch keeps
            its length (E. Hoffer et al., Augment Your Batch, CVPR 2020).
        preprocessing: ``"timm"``: the options from ``image_size`` to ``augmentation`` say what the model gets;
            ``"none"``, for ``"digits"`` only: images of 8 x 8 pixels in one channel, in [-1, 1].
        optimizer: a name of timm's optimizers; None: the AdamW and the schedule that other tasks have.
        schedule: options of timm's ``create_scheduler_v2``, such as ``sched`` and ``warmup_lr``; length, warm-up and
            floor are the run's.

    Raises:
        TypeError, ValueError: an option has a value it cannot have; the message names it.
        ImportError: the extra ``vision`` is missing.
    """

    model: str = "vit_small_patch16_224"
    model_options: Mapping[str, Any] = field(default_factory=dict)
    pretrained: bool | str = False
    dataset: str = "digits"
    root: str | None = None
    train_split: str = "train"
    validation_split: str = "validation"
    holdout: int = 0
    split_seed: int = 0
    num_classes: int | None = None
    image_size: int = 224
    crop_pct: float = 0.875
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    augmentation: Mapping[str, Any] = field(default_factory=dict)
    mixing: Mapping[str, Any] = field(default_factory=dict)
    label_smoothing: float = 0.0
    repeated_augmentation: int = 1
    preprocessing: str = "timm"
    optimizer: str | None = "adamw"
    schedule: Mapping[str, Any] = field(default_factory=dict)

    name: ClassVar[str] = "image-classification"
    metric: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._check_types()
        check_known("model of timm:", [self.model.split(".")[0]], require("timm", extra="vision").list_models())
        for name, minimum in (("holdout", 0), ("image_size", 1), ("repeated_augmentation", 1)):
            check_integer(name, getattr(self, name), minimum=minimum)
        check_split_seed(self.split_seed)
        if self.num_classes is not None:
            check_integer("num_classes", self.num_classes, minimum=2)
        check_number("label_smoothing", self.label_smoothing, below=1.0)
        check_number("crop_pct", self.crop_pct, above=0.0)
        side = self.image_size / self.crop_pct
        check_memory(
            f"image_size={self.image_size} and crop_pct={self.crop_pct}: one image",
            max(self.image_size * self.image_size, side * side) * BYTES_PER_PIXEL,
        )
        object.__setattr__(self, "mean", _three_numbers("mean", self.mean, minimum=0.0))
        object.__setattr__(self, "std", _three_numbers("std", self.std, above=0.0))
        data = require("timm.data", extra="vision")
        _check_options("augmentation", self.augmentation, data.create_transform, _OWN_TRANSFORM)
        _check_options("mixing", self.mixing, data.Mixup.__init__, _OWN_MIXING | {"self"})
        _check_mixing(self.mixing)
        check_schedule(self.schedule)
        if self.optimizer is not None:
            check_optimizer(self.optimizer)
        elif self.schedule:
            raise ValueError("schedule is for timm's optimizers; name one in optimizer, or leave schedule out")
        self._check_source()
        self._check_preprocessing()

    def _check_types(self) -> None:
        for name in ("model", "dataset", "train_split", "validation_split", "interpolation"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{name} must be a string; got {getattr(self, name)!r}")
        for name in ("root", "optimizer"):
            if not isinstance(getattr(self, name), str | None):
                raise TypeError(f"{name} must be a string or None; got {getattr(self, name)!r}")
        if not isinstance(self.pretrained, bool | str):
            raise TypeError(f"pretrained must be true, false or the path of a file; got {self.pretrained!r}")
        for name in ("model_options", "augmentation", "mixing", "schedule"):
            if not isinstance(getattr(self, name), Mapping):
                raise TypeError(f"{name} must be a mapping of options; got {getattr(self, name)!r}")

    def _check_source(self) -> None:
        """Raise if an option would be ignored, or contradicts another one, by where the images come from."""
        if "num_classes" in self.model_options:
            raise ValueError(
                f"num_classes is an option of the task, not in model_options; got {dict(self.model_options)!r}"
            )
        if self.dataset != "digits":
            if self.split_seed and not self.holdout:
                raise ValueError(
                    f"split_seed decides which images holdout takes, and holdout is 0; got split_seed={self.split_seed}"
                )
            return
        ignored = {
            name: getattr(self, name)
            for name in ("root", "train_split", "validation_split")
            if getattr(self, name) != self.__dataclass_fields__[name].default
        }
        if ignored:
            given = ", ".join(f"{name}={value!r}" for name, value in ignored.items())
            raise ValueError(
                f"{given} would be ignored: dataset is 'digits', its default, whose images come with scikit-learn; for "
                "a folder of images give dataset='' too"
            )
        if self.num_classes not in (None, len(DigitImages.classes)):
            raise ValueError(
                f"num_classes must be the 10 classes of dataset='digits', or be left out; got {self.num_classes}"
            )

    def _check_preprocessing(self) -> None:
        check_choice("preprocessing", self.preprocessing, PREPROCESSING)
        if self.preprocessing == "timm":
            self._transform(training=True)
        elif self.dataset != "digits" or self.holdout or self.augmentation:
            raise ValueError(
                "preprocessing='none' is for dataset='digits' without holdout and augmentation; got "
                f"dataset={self.dataset!r}, holdout={self.holdout}, augmentation={dict(self.augmentation)!r}"
            )
        else:
            self._check_unprocessed()

    def _check_unprocessed(self) -> None:
        """Raise if an option is given that has no effect without preprocessing."""
        fields = self.__dataclass_fields__
        allowed = {"image_size": (DIGIT_SIZE,), "mean": (IMAGENET_MEAN, HALVES), "std": (IMAGENET_STD, HALVES)}
        allowed |= {name: (fields[name].default,) for name in ("crop_pct", "interpolation")}
        ignored = [name for name, values in allowed.items() if getattr(self, name) not in values]
        if ignored:
            raise ValueError(
                f"preprocessing='none' gives the model images of {DIGIT_SIZE} x {DIGIT_SIZE} pixels as they are; "
                + ", ".join(f"{name} must be {allowed[name][-1]!r}, not {getattr(self, name)!r}" for name in ignored)
            )
        patch = self.model_options.get("patch_size", 1)
        if check_integer("patch_size", patch, minimum=1) and DIGIT_SIZE % patch:  # timm would ignore the last rows
            raise ValueError(f"patch_size must divide the image size, {DIGIT_SIZE}; got {self.model_options!r}")

    def build_model(self) -> nn.Module:
        """A new model of timm's.

        Raises:
            OSError: pretrained weights cannot be loaded.
            ValueError: the model has no such options, does not take images of this size, or its weights are larger than
                the memory.
        """
        timm = require("timm", extra="vision")
        options = {"num_classes": self._class_count, **self.model_options}
        fixed = getattr(timm.get_pretrained_cfg(self.model), "fixed_input_size", False)
        if fixed and "img_size" not in options:
            options["img_size"] = self.image_size
        self._check_model(options)
        if not self.pretrained:
            return self._create_model(options)
        overlay = {"file": self.pretrained} if isinstance(self.pretrained, str) else None
        try:
            if isinstance(self.pretrained, str):
                check_regular(Path(self.pretrained))
            return timm.create_model(self.model, pretrained=True, pretrained_cfg_overlay=overlay, **options)
        except Exception as error:  # the hub, the network and file formats raise errors of many kinds
            file = f"{self.pretrained}: " if isinstance(self.pretrained, str) else ""
            reason = f"{file}{type(error).__name__}: {one_line(error)}"
            raise OSError(
                f"pretrained weights of {self.model!r} could not be loaded ({reason}). They come from the hub "
                "unless they are in its cache; without a network give pretrained the path of a file"
            ) from error

    def _create_model(self, options: Mapping[str, Any]) -> nn.Module:
        try:
            return require("timm", extra="vision").create_model(self.model, **options)
        except Exception as error:  # timm checks sizes by assertions, or lets Python and torch do it
            raise ValueError(
                f"timm makes no model {self.model!r} of model_options={dict(options)!r}: {one_line(error)}"
            ) from error

    def _check_model(self, options: Mapping[str, Any]) -> None:
        """Make the model and run it without memory for it, as a trial of its options."""
        check_depth(options)
        what = f"model={self.model!r} with the options {dict(options)!r}"
        model = build_on_meta(lambda: self._create_model(options), what).eval()
        channels = 3 if self.preprocessing == "timm" else 1
        try:
            with torch.no_grad():
                model(torch.zeros(1, channels, self.image_size, self.image_size, device="meta"))
        except NotImplementedError:  # a model that looks at values, which the meta device does not have
            return
        except Exception as error:  # timm checks sizes by assertions, or lets torch do it
            if "meta" not in str(error):
                size = f"{channels} x {self.image_size} x {self.image_size}"
                raise ValueError(f"{what} does not take images of {size}: {one_line(error)}") from error

    def datasets(self) -> Splits:
        """Images ``(3, image_size, image_size)``, or ``(1, 8, 8)`` unprocessed, and labels; training is augmented.

        Raises:
            ValueError, OSError: the data is missing or invalid; see :func:`open_images`.
        """
        if self.preprocessing == "none":
            digits = load_digits(split_seed=self.split_seed)
            return Splits(*digits, repeats=self._repeats(len(digits[0])))
        train, validation, test = self._images
        if train.classes and len(train.classes) != self._class_count:
            raise ValueError(
                f"num_classes must be the {len(train.classes)} classes of the training split; got {self._class_count}"
            )
        kept, held = self._held_out
        evaluation = self._transform(training=False)
        repeats = self._repeats(len(train) if kept is None else len(kept))
        return Splits(
            train=TransformedImages(train, self._transform(training=True), kept),
            validation=TransformedImages(validation, evaluation, held),
            test=TransformedImages(test, evaluation),
            repeats=repeats,
        )

    def _repeats(self, size: int) -> int:
        """``repeated_augmentation``, if it is at most the number of training images; an epoch would hold one alone."""
        if self.repeated_augmentation > size:
            raise ValueError(
                f"repeated_augmentation must be at most the {size} training images; got {self.repeated_augmentation}"
            )
        return self.repeated_augmentation

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean cross-entropy, with mixed or smoothed targets if the options say so."""
        losses = require("timm.loss", extra="vision")
        images, labels = batch
        if not (self.mixing or self.label_smoothing):
            return F.cross_entropy(model(images), labels)
        if not self.mixing:
            return losses.LabelSmoothingCrossEntropy(self.label_smoothing)(model(images), labels)
        if len(images) % 2:
            raise ValueError(f"mixing needs an even number of images in a micro-batch; got {len(images)}")
        images, targets = self._mixup(images, labels)
        return losses.SoftTargetCrossEntropy()(model(images), targets)

    def evaluate(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy and accuracy (0 or 1) of every image, each of shape ``(B,)``; ``top5`` from six classes on."""
        images, labels = batch
        logits = model(images)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        best = logits.topk(min(TOP, logits.shape[-1]), dim=-1).indices == labels[:, None]
        values = {"loss": F.cross_entropy(logits, labels, reduction="none"), "accuracy": best[:, 0].to(logits.dtype)}
        return values if logits.shape[-1] <= TOP else {**values, "top5": best.any(dim=-1).to(logits.dtype)}

    def example_batch(self, size: int = 32) -> tuple[Tensor]:
        """``size`` validation images, evenly spread, for folders come class by class; unprocessed ones: the first."""
        check_integer("size", size, minimum=1)
        validation: Any = self.datasets().validation
        count = len(validation)
        indices = spread(count, size) if self.preprocessing == "timm" else range(min(size, count))
        return (default_collate([validation[index][0] for index in indices]),)

    def make_optimizer(self, model: nn.Module, settings: OptimizerSettings) -> Optimizer:
        """timm's optimizer of the name ``optimizer``."""
        if self.optimizer is None:
            return super().make_optimizer(model, settings)
        return create_optimizer(self.optimizer, model, settings)

    def make_scheduler(self, optimizer: Optimizer, settings: OptimizerSettings) -> LRScheduler:
        """timm's schedule."""
        if self.optimizer is None:
            return super().make_scheduler(optimizer, settings)
        steps_per_epoch = max(1, len(self.datasets().train) // settings.batch_size)  # type: ignore[arg-type]
        return create_scheduler(self.schedule, optimizer, settings, steps_per_epoch=steps_per_epoch)

    def pictures(self, model: nn.Module) -> dict[str, Picture]:
        """A confusion matrix, and test images with predictions."""
        mean, std = (self.mean, self.std) if self.preprocessing == "timm" else (HALVES, HALVES)
        return draw_pictures(model, self.datasets().test, self._images[0].classes, mean=mean, std=std)

    @cached_property
    def _images(self) -> tuple[LabeledImages, LabeledImages, LabeledImages]:
        """Training, validation and test images; with a holdout, validation images are a part of the training ones."""
        if self.dataset == "digits":
            train: LabeledImages = DigitImages("train", split_seed=self.split_seed)
            validation: LabeledImages = DigitImages("validation", split_seed=self.split_seed)
            test: LabeledImages = DigitImages("test", split_seed=self.split_seed)
        else:
            train = open_images(self.dataset, self.root, self.train_split)
            test = validation = open_images(self.dataset, self.root, self.validation_split)
            check_same_classes(train, test, split=self.validation_split)
        return train, train if self.holdout else validation, test

    @cached_property
    def _held_out(self) -> tuple[list[int] | None, list[int] | None]:
        """Which images of the training split are for training and which for validation; None: all."""
        if not self.holdout:
            return None, None
        size = len(self._images[0])
        if self.holdout >= size:
            raise ValueError(f"holdout must be less than the {size} training images; got {self.holdout}")
        order = torch.randperm(size, generator=torch.Generator().manual_seed(self.split_seed)).tolist()
        return sorted(order[self.holdout :]), sorted(order[: self.holdout])

    @cached_property
    def _class_count(self) -> int:
        if self.num_classes is not None:
            return self.num_classes
        classes = self._images[0].classes
        if not classes:
            raise ValueError(f"dataset {self.dataset!r} does not name its classes; give num_classes")
        if len(classes) < 2:
            raise ValueError(
                f"the training split in root={self.root!r} has one class, {classes[0]!r}; at least two are needed"
            )
        return len(classes)

    @cached_property
    def _mixup(self) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        mixup = require("timm.data", extra="vision").Mixup
        return mixup(**self.mixing, num_classes=self._class_count, label_smoothing=self.label_smoothing)

    def _transform(self, *, training: bool) -> Callable[[Any], Tensor]:
        size = (3, self.image_size, self.image_size)
        common = {"interpolation": self.interpolation, "mean": self.mean, "std": self.std, "crop_pct": self.crop_pct}
        try:
            return require("timm.data", extra="vision").create_transform(
                size, is_training=training, **common, **(self.augmentation if training else {})
            )
        except (AssertionError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"timm makes no transform of augmentation={dict(self.augmentation)!r} and "
                f"interpolation={self.interpolation!r}: {type(error).__name__}: {error}"
            ) from error


def _check_options(name: str, options: Mapping[str, Any], function: Callable[..., Any], own: set[str]) -> None:
    known = [parameter for parameter in inspect.signature(function).parameters if parameter not in own]
    check_known(f"option in {name}:", options, known)


def _check_mixing(options: Mapping[str, Any]) -> None:
    """Raise for values that timm would take for others, or find at the first step."""
    check_choice("mixing: mode", options.get("mode", "batch"), MIXING_MODES)
    for name in ("mixup_alpha", "cutmix_alpha", "prob", "switch_prob"):
        check_number(f"mixing: {name}", options.get(name, 0.0))
    if options and not (options.get("mixup_alpha", 1.0) or options.get("cutmix_alpha") or options.get("cutmix_minmax")):
        raise ValueError(f"mixing must have a mixup_alpha or a cutmix_alpha of more than 0; got {dict(options)!r}")


def _three_numbers(name: str, values: object, **limits: float) -> tuple[float, ...]:
    if not isinstance(values, list | tuple) or len(values) != 3:
        raise TypeError(f"{name} must be three numbers, one per channel; got {values!r}")
    return tuple(check_number(name, value, **limits) for value in values)
