import io

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from preconditioned_attention.lab.tasks.detection_pictures import GAP, LEAST_SIDE, draw_scenes


class Fixed(nn.Module):
    """Finds one object with certainty and one with doubt, wherever it looks."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        assert not self.training
        found = []
        for image in images:
            masks = torch.zeros(2, 1, *image.shape[1:])
            masks[0, 0, 10:30, 10:30] = 0.9
            masks[1, 0, 40:50, 40:50] = 0.9
            boxes = torch.tensor([[10.0, 10, 30, 30], [40, 40, 50, 50]])
            found.append({"boxes": boxes, "scores": torch.tensor([0.8, 0.3]), "masks": masks})
        return found


def example(height: int, width: int) -> tuple[Tensor, dict[str, Tensor]]:
    masks = torch.zeros(1, height, width, dtype=torch.uint8)
    masks[0, 20:40, 20:40] = 1
    return torch.full((3, height, width), 0.5), {"boxes": torch.tensor([[20.0, 20, 40, 40]]), "masks": masks}


def pixels(png: bytes) -> Tensor:
    image = Image.open(io.BytesIO(png))
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3)


def test_truth_stands_above_and_confident_detections_below() -> None:
    picture = draw_scenes(Fixed(), [example(60, 60)] * 2)
    sheet = pixels(picture.png)
    side = LEAST_SIDE
    assert sheet.shape == (2 * side + GAP, 2 * side + GAP, 3)
    above, below = sheet[:side, :side], sheet[side + GAP :, :side]
    factor = side // 60
    gray = torch.tensor([128, 128, 128], dtype=torch.uint8)
    assert not torch.equal(above[30 * factor, 30 * factor], gray)  # the true object
    assert not torch.equal(below[25 * factor, 25 * factor], gray)  # the one that was found
    assert torch.equal(below[45 * factor, 45 * factor], gray)  # the doubtful one is not drawn
    assert picture.description == "2 test images: 2 true objects above, 2 found below"


def test_images_of_different_sizes_without_objects() -> None:
    image, target = example(50, 80)
    empty = {"boxes": target["boxes"][:0], "masks": target["masks"][:0]}
    sheet = pixels(draw_scenes(Fixed(), [(image, empty), example(80, 50)]).png)
    assert sheet.shape[:2] == (2 * 400 + GAP, 2 * 400 + GAP)


@pytest.mark.parametrize("side", [240, 300])
def test_large_images_keep_their_size(side: int) -> None:
    assert pixels(draw_scenes(Fixed(), [example(side, side)]).png).shape == (2 * side + GAP, side, 3)
