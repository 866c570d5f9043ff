import io

import matplotlib.image
import numpy as np

from preconditioned_attention.lab.reporting.pictures import plot_confusion, plot_labeled_images


def pixels(png: bytes) -> np.ndarray:
    return matplotlib.image.imread(io.BytesIO(png), format="png")[..., :3]


def dark_blue(png: bytes) -> int:
    image = pixels(png)
    return int(((image[..., 2] > image[..., 0] + 0.3) & (image[..., 0] < 0.1)).sum())


def test_the_diagonal_is_dark_where_a_class_is_recognized() -> None:
    names = ["a", "b", "c"]
    perfect = plot_confusion([[5, 0, 0], [0, 7, 0], [0, 0, 1]], names, title="t")
    spread = plot_confusion([[2, 2, 2], [2, 2, 2], [2, 2, 2]], names, title="t")
    assert dark_blue(perfect) > 3 * max(1, dark_blue(spread))
    assert plot_confusion([[0, 0, 0]] * 3, names, title="t") != perfect  # a class without images divides nothing by 0


def test_long_names_and_many_classes_fit() -> None:
    size = 20
    counts = np.eye(size, dtype=int).tolist()
    image = pixels(plot_confusion(counts, [f"a rather long name of class {i}" for i in range(size)], title="t"))
    assert image.shape[0] == image.shape[1]
    border = np.concatenate([image[0].ravel(), image[-1].ravel(), image[:, 0].ravel(), image[:, -1].ravel()])
    assert (border == 1.0).all()


def test_images_stand_in_a_grid_and_a_mistake_changes_the_color() -> None:
    images = [np.full((4, 4, 3), value) for value in (0.0, 0.25, 0.5, 0.75, 0.3)]
    right = plot_labeled_images(images, ["x"] * 5, [None] * 5, title="t")
    wrong = plot_labeled_images(images, ["x"] * 5, [None] * 4 + ["is y"], title="t")
    for value in (0.0, 0.25, 0.5, 0.75, 0.3):
        assert (np.abs(pixels(right) - value).max(axis=-1) < 0.01).sum() > 1000

    def orange(png: bytes) -> int:
        image = pixels(png)
        return int(((image[..., 0] > image[..., 2] + 0.5) & (image[..., 1] < image[..., 0])).sum())

    assert orange(right) == 0
    assert orange(wrong) > 0
