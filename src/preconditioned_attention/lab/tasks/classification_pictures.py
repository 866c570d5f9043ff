"""Pictures of a classifier's predictions on test images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from ..reporting import Picture
from ..reporting.pictures import plot_confusion, plot_labeled_images

COUNTED = 5000
SHOWN = 16
LARGEST_MATRIX = 20


def spread(size: int, count: int) -> list[int]:
    """At most ``count`` indices below ``size``, evenly spread."""
    count = min(size, count)
    return [index * size // count for index in range(count)]


def draw_pictures(
    model: nn.Module,
    dataset: Dataset[tuple[Tensor, int]],
    classes: Sequence[str],
    *,
    mean: Sequence[float],
    std: Sequence[float],
) -> dict[str, Picture]:
    """A confusion matrix over at most 5000 images, and 16 images with labels and predictions.

    Args:
        model: returns logits; its mode is restored.
        dataset: normalized images ``(3, H, W)`` and labels.
        classes: names of the labels; numbers if it is empty.
        mean, std: what the images were normalized by.
    """
    chosen = spread(len(dataset), COUNTED)  # type: ignore[arg-type]
    labels, probabilities = _predict(model, Subset(dataset, chosen))
    names = [name.replace("$", r"\$") for name in classes]  # matplotlib sets what is between two $ as mathematics
    names = names or [str(number) for number in range(probabilities.shape[-1])]
    return {
        "confusion": _confusion(labels, probabilities.argmax(dim=-1), names),
        "predictions": _predictions(Subset(dataset, chosen), labels, probabilities, names, mean, std),
    }


@torch.no_grad()
def _predict(model: nn.Module, dataset: Dataset[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Labels ``(N,)`` and probabilities ``(N, classes)``."""
    training = model.training
    weight = next(model.parameters())
    model.eval()
    labels, probabilities = [], []
    for images, batch_labels in DataLoader(dataset, batch_size=64):
        logits = model(images.to(weight.device, weight.dtype))
        labels.append(batch_labels)
        probabilities.append(logits.float().softmax(dim=-1).cpu())
    model.train(training)
    return torch.cat(labels), torch.cat(probabilities)


def _confusion(labels: Tensor, predicted: Tensor, names: list[str]) -> Picture:
    size = len(names)
    counts = torch.bincount(labels * size + predicted, minlength=size * size).view(size, size)
    shown = _most_confused(counts)
    some = "" if len(shown) == size else f"; of {size} classes the {len(shown)} with most errors"
    return Picture(
        plot_confusion(counts[shown][:, shown].tolist(), [names[index] for index in shown], title="Confusion matrix"),
        f"Confusion matrix of {len(labels)} test images",
        f"How many of {len(labels)} test images of each class (row) were taken for each class (column){some}.",
    )


def _most_confused(counts: Tensor) -> Tensor:
    """The classes to show, in their order: all, or those with most errors, as label or as prediction."""
    if len(counts) <= LARGEST_MATRIX:
        return torch.arange(len(counts))
    errors = counts.sum(dim=0) + counts.sum(dim=1) - 2 * counts.diagonal()
    return errors.topk(LARGEST_MATRIX).indices.sort().values


def _predictions(
    dataset: Dataset[tuple[Tensor, int]],
    labels: Tensor,
    probabilities: Tensor,
    names: list[str],
    mean: Sequence[float],
    std: Sequence[float],
) -> Picture:
    chosen = spread(len(labels), SHOWN)
    scale, shift = (torch.tensor(values).view(3, 1, 1) for values in (std, mean))
    images = [(dataset[index][0] * scale + shift).clamp(0, 1).permute(1, 2, 0).numpy() for index in chosen]
    best = probabilities.max(dim=-1)
    captions = [f"{names[best.indices[i]]}  {best.values[i]:.0%}" for i in chosen]
    wrong = [None if best.indices[i] == labels[i] else f"is {names[labels[i]]}" for i in chosen]
    return Picture(
        plot_labeled_images(images, captions, wrong, title="Predictions"),
        f"{len(chosen)} test images, each with the predicted class and its probability",
        "Test images as the model gets them, with the predicted class and its probability; "
        "where it is wrong, the right class is below in the same color.",
    )
