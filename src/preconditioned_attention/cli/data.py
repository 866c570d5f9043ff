"""``precond data DATASET``: write data that need no download."""

from __future__ import annotations

from pathlib import Path

from ..data.digit_scenes import DigitScenes, write_digit_scenes


def digit_scenes(
    *,
    output: Path,
    count: int = 1200,
    held_out: int = 200,
    seed: int = 0,
    classes: int = 1,
    image_size: int = 96,
) -> None:
    """Real handwritten digits on textured canvases, with exact boxes and masks, in COCO's format.

    Args:
        output: The folder to write; it must not exist.
        count: Training scenes.
        held_out: Validation scenes, and as many test scenes.
        seed: Everything random.
        classes: 1, every digit is a "digit"; or 10.
        image_size: Pixels along a canvas's side.
    """
    scenes = DigitScenes(count=count, held_out=held_out, seed=seed, classes=classes, image_size=image_size)
    write_digit_scenes(output, scenes)
    print(f"Written: {count} training, {held_out} validation and {held_out} test scenes in {output}")


data = {"digit-scenes": digit_scenes}
"""What writes each data set, by its name on the command line; a function's options are its data set's."""
