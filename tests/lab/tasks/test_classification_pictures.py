import io

import matplotlib.image
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from preconditioned_attention.lab.tasks import classification_pictures
from preconditioned_attention.lab.tasks.classification_pictures import draw_pictures, spread


class Constant(nn.Module):
    """Predicts the class that the first pixel holds."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.classes = classes

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert not self.training
        return 10 * self.scale * nn.functional.one_hot(images[:, 0, 0, 0].round().long(), self.classes).float()


def dataset(predicted: list[int], labels: list[int]) -> TensorDataset:
    return TensorDataset(torch.tensor(predicted).float().view(-1, 1, 1, 1).repeat(1, 3, 4, 4), torch.tensor(labels))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple]:
    seen: dict[str, tuple] = {}
    for name in ("plot_confusion", "plot_labeled_images"):

        def record(*arguments: object, name: str = name, **_: object) -> bytes:
            seen[name] = arguments
            return b""

        monkeypatch.setattr(classification_pictures, name, record)
    return seen


def test_spread() -> None:
    assert spread(10, 4) == [0, 2, 5, 7]
    assert spread(3, 5) == [0, 1, 2]
    assert spread(0, 5) == []


def test_counts_and_captions(drawn: dict[str, tuple]) -> None:
    model = Constant(3).train()
    pictures = draw_pictures(model, dataset([0, 1, 1, 2], [0, 1, 2, 2]), ["a", "b", "c"], mean=[0] * 3, std=[0.1] * 3)
    assert model.training
    assert drawn["plot_confusion"] == ([[1, 0, 0], [0, 1, 0], [0, 1, 1]], ["a", "b", "c"])
    images, captions, wrong = drawn["plot_labeled_images"]
    assert captions == ["a  100%", "b  100%", "b  100%", "c  100%"]
    assert wrong == [None, None, "is c", None]
    np.testing.assert_allclose(images[3], np.full((4, 4, 3), 0.2), rtol=1e-6)
    assert "4 test images" in pictures["confusion"].caption


def test_of_many_classes_the_most_confused_are_shown(drawn: dict[str, tuple]) -> None:
    labels = list(range(30))
    predicted = [29 if label in (4, 7) else label for label in labels]
    pictures = draw_pictures(Constant(30), dataset(predicted, labels), [], mean=[0] * 3, std=[1] * 3)
    counts, names = drawn["plot_confusion"]
    assert len(names) == 20
    assert names == sorted(names, key=int)
    assert {"4", "7", "29"} <= set(names)
    assert counts[names.index("4")][names.index("29")] == 1
    assert "of 30 classes the 20 with most errors" in pictures["confusion"].caption


def test_at_most_so_many_images_are_counted(drawn: dict[str, tuple], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classification_pictures, "COUNTED", 6)
    draw_pictures(Constant(2), dataset([0] * 8 + [1] * 4, [0] * 8 + [1] * 4), ["a", "b"], mean=[0] * 3, std=[1] * 3)
    assert drawn["plot_confusion"][0] == [[4, 0], [0, 2]]


def test_the_pictures_are_pictures() -> None:
    pictures = draw_pictures(Constant(2), dataset([0, 1], [0, 0]), ["a", "b"], mean=[0] * 3, std=[1] * 3)
    for picture in pictures.values():
        assert matplotlib.image.imread(io.BytesIO(picture.png), format="png").shape[0] > 100
