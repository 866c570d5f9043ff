"""``precond data DATASET``: write a dataset that needs no download."""

from __future__ import annotations

from pathlib import Path

from ._progress import progress


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
        seed: The random seed.
        classes: 1, every digit is a "digit"; or 10.
        image_size: Pixels along a canvas's side.
    """
    from ..lab.data.digit_scenes import DigitScenes, write_digit_scenes

    scenes = DigitScenes(count=count, held_out=held_out, seed=seed, classes=classes, image_size=image_size)
    write_digit_scenes(output, scenes)
    print(f"Written: {count} training, {held_out} validation and {held_out} test scenes in {output}")


def listops(*, output: Path, count: int = 96_000, held_out: int = 2_000, seed: int = 0, jobs: int = 2) -> None:
    """ListOps of the Long Range Arena, in the files of its release.

    Args:
        output: The folder to write; it must not exist.
        count: Training expressions.
        held_out: Validation expressions, and as many test expressions.
        seed: The random seed.
        jobs: The number of worker processes; the files do not depend on it.
    """
    from ..lab.data.limits import check_processes
    from ..lab.data.listops import ListOpsOptions, write_listops
    from ..lab.data.new_folder import check_new

    options = ListOpsOptions(count=count, held_out=held_out, seed=seed)
    check_processes("jobs", jobs)
    check_new(output)
    with progress("expressions", sum(options.sizes)) as advance:
        write_listops(output, options, workers=jobs, on_progress=advance)
    print(f"Written: {count} training, {held_out} validation and {held_out} test expressions in {output}")


def pathfinder(*, output: Path, count: int = 200_000, difficulty: str = "hard", seed: int = 0, jobs: int = 2) -> None:
    """Pathfinder32 of the Long Range Arena, in the layout of its release.

    Args:
        output: The folder that holds a folder per difficulty; the one to write must not exist.
        count: Images.
        difficulty: easy, intermediate or hard: paths of 6, 9 or 14 dashes.
        seed: The random seed.
        jobs: The number of worker processes; the files do not depend on it.
    """
    from ..lab.data.limits import check_processes
    from ..lab.data.new_folder import check_new
    from ..lab.data.pathfinder import FOLDERS, PathfinderOptions, write_pathfinder

    options = PathfinderOptions(count=count, difficulty=difficulty, seed=seed)
    check_processes("jobs", jobs)
    check_new(output / FOLDERS[difficulty])
    with progress("images", count) as advance:
        folder = write_pathfinder(output, options, workers=jobs, on_progress=advance)
    print(f"Written: {count} images in {folder}")


data = {"digit-scenes": digit_scenes, "listops": listops, "pathfinder": pathfinder}
"""Name on the command line -> the function that writes the dataset; its arguments are the options."""
