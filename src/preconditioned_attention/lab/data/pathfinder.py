"""Generator and reader of Pathfinder32 of the Long Range Arena: do two discs lie on the same dashed path?

Three difficulties, by the number of dashes of a path. The files are those of the release: below ``pathfinder32`` a
folder per difficulty with ``imgs/<k>/sample_<n>.png``, 8-bit gray, and ``metadata/<k>.npy``, which is plain text
despite its name: a line per image with folder, file, number, label, and the generator's settings.
"""

from __future__ import annotations

import io
import logging
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..._checks import check_integer
from ..._extras import require
from ...config import check_choice
from .image_files import check_regular, one_line
from .limits import check_disk, check_processes
from .new_folder import check_new, write_folder
from .pathfinder_drawing import SIZE, Drawing, draw_pathfinder
from .sequences import as_ids
from .tables import read_table
from .worker_pool import worker_pool

logger = logging.getLogger(__name__)

CONTOURS = {"easy": 6, "intermediate": 9, "hard": 14}
FOLDERS = {"easy": "curv_baseline", "intermediate": "curv_contour_length_9", "hard": "curv_contour_length_14"}
FIELDS = (
    *("folder", "file", "number", "label", "continuity", "contour length", "distractor length", "dash length"),
    *("thickness", "margin", "contrasts"),
)
IMAGES_PER_FOLDER = 1000
CHUNK = 50
LEAST_BYTES = 256  # of a file; most have more


@dataclass(frozen=True, kw_only=True)
class PathfinderOptions:
    """Options of a set of images.

    Args:
        count: images.
        difficulty: ``"easy"``, ``"intermediate"`` or ``"hard"``: paths of 6, 9 or 14 dashes.
        seed: decides all random numbers.

    Raises:
        TypeError, ValueError: an option has a value it cannot have; the message names it.
    """

    count: int = 200_000
    difficulty: str = "hard"
    seed: int = 0

    def __post_init__(self) -> None:
        check_integer("count", self.count, minimum=1)
        check_integer("seed", self.seed, minimum=0)
        check_choice("difficulty", self.difficulty, tuple(CONTOURS))


def make_image(options: PathfinderOptions, number: int) -> Drawing:
    """Image ``number``, from 0: a function of the arguments alone."""
    contour_length = CONTOURS[options.difficulty]
    draw = random.Random(f"pathfinder {options.seed} {contour_length} {number}").random
    return draw_pathfinder(draw, contour_length=contour_length)


def make_pathfinder(options: PathfinderOptions, *, workers: int = 1) -> Iterator[Drawing]:
    """All images, in order; the same for any number of processes.

    Args:
        options: see there.
        workers: processes that share the work. With more than one the calling script needs the usual
            ``if __name__ == "__main__":``.
    """
    jobs = ((options, start) for start in range(0, options.count, CHUNK))
    with worker_pool(workers) as run:
        for drawings in run(_make_chunk, jobs):
            yield from drawings


def _make_chunk(job: tuple[PathfinderOptions, int]) -> list[Drawing]:
    options, start = job
    return [make_image(options, number) for number in range(start, min(start + CHUNK, options.count))]


def write_pathfinder(
    output: Path, options: PathfinderOptions, *, workers: int = 1, on_progress: Callable[[], None] = lambda: None
) -> Path:
    """Write the folder of one difficulty in ``output``, in full or not at all, and return it.

    Args:
        output: the folder that holds the difficulties, as ``pathfinder32`` in the release.
        options: see there.
        workers: as in :func:`make_pathfinder`; the files are the same for any number.
        on_progress: called once per image.

    Raises:
        ValueError: the difficulty is there already, or the images would need more than the free space of the disk.
        OSError: it cannot be written.
    """
    folder = output / FOLDERS[options.difficulty]
    check_processes("workers", workers)
    check_new(folder)
    check_disk(f"count={options.count}: the images", options.count * LEAST_BYTES, output)
    with write_folder(folder) as temporary:
        (temporary / "metadata").mkdir(parents=True)
        lines: list[str] = []
        for number, drawing in enumerate(make_pathfinder(options, workers=workers)):
            batch, place = divmod(number, IMAGES_PER_FOLDER)
            lines.append(_write_image(temporary, drawing, batch, place, CONTOURS[options.difficulty]))
            if place == IMAGES_PER_FOLDER - 1 or number == options.count - 1:
                (temporary / "metadata" / f"{batch}.npy").write_text("".join(lines), encoding="utf-8")
                lines = []
            on_progress()
    return folder


def _write_image(folder: Path, drawing: Drawing, batch: int, place: int, contour_length: int) -> str:
    """Write a PNG; its line in the metadata."""
    path = folder / "imgs" / str(batch) / f"sample_{place}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    require("PIL.Image", extra="vision").fromarray(drawing.image).save(path)
    settings = ("1.0", contour_length, contour_length // 3, 2, 0.5, 1, 1)
    return " ".join(map(str, (f"imgs/{batch}", path.name, place, drawing.label, *settings))) + "\n"


class PathfinderImages(Dataset[tuple[Tensor, int]]):
    """Pixels row by row, int64 ``(1024,)`` in 0 to 255, and a label, 0 or 1.

    Args:
        paths: of the images.
        places: file and line of the metadata that list each.
        labels: one per image.
    """

    def __init__(self, paths: Sequence[Path], places: Sequence[str], labels: Sequence[int]) -> None:
        self.paths = paths
        self.labels = labels
        self._places = places

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Read one image.

        Raises:
            OSError: it is not an image, or of another kind; the message names it and its line in the metadata.
        """
        return as_ids(self.read(index)), self.labels[index]

    def read(self, index: int) -> bytes:
        """The pixels of an image, a byte each."""
        where = f"image {self.paths[index]} ({self._places[index]})"
        image = require("PIL.Image", extra="vision")
        try:
            check_regular(self.paths[index])
            content = self.paths[index].read_bytes()
            with image.open(io.BytesIO(content)) as opened:
                opened.load()
                if (opened.mode, opened.size) != ("L", (SIZE, SIZE)):
                    raise OSError(f"8-bit gray, {SIZE} x {SIZE}, is expected; got {opened.mode}, {opened.size}")
                return opened.tobytes()
        except Exception as error:  # Pillow raises errors of many kinds for broken files
            raise OSError(f"{where} cannot be read ({one_line(error)}); replace it or remove its line") from error

    def subset(self, indices: Sequence[int]) -> PathfinderImages:
        """Some of the images, in the order of ``indices``."""
        chosen = [[each[index] for index in indices] for each in (self.paths, self._places, self.labels)]
        return PathfinderImages(*chosen)  # type: ignore[arg-type]


def read_pathfinder(folder: Path) -> PathfinderImages:
    """All images of one difficulty, of the release or of :func:`write_pathfinder`, in the order of the metadata.

    Images of no bytes are left out, and counted in a warning: the release has one. Any other fault is an error.

    Raises:
        ValueError: a line of the metadata is invalid or names an image for the second time; the message names it.
        OSError: a file that the metadata names is missing.
    """
    tables = sorted((folder / "metadata").glob("*.npy"), key=lambda path: (len(path.stem), path.stem))
    if not tables:
        raise FileNotFoundError(f"{folder} holds no metadata/*.npy; it must be one of {', '.join(FOLDERS.values())}")
    paths: list[Path] = []
    places: list[str] = []
    labels: list[int] = []
    empty = 0
    seen: dict[Path, str] = {}
    for table in tables:
        _check_table(table)
        for line, fields in read_table(table, FIELDS, header=False, separator=b" "):
            where = f"{table}, line {line}"
            path = folder / fields[0].decode() / fields[1].decode()
            if fields[3] not in (b"0", b"1"):
                raise ValueError(f"{where}: the label must be 0 or 1; got {fields[3].decode()!r}")
            if seen.setdefault(path, where) != where:  # of different splits, perhaps
                raise ValueError(f"{where} names {path} again, after {seen[path]}; remove one of the lines")
            if not path.is_file():
                raise FileNotFoundError(f"{where} names {path}, which is not there")
            if path.stat().st_size == 0:
                empty += 1
                continue
            paths.append(path)
            places.append(where)
            labels.append(int(fields[3]))
    if empty:
        logger.warning("%s: %d image(s) of no bytes left out, %d remain", folder, empty, len(paths))
    return PathfinderImages(paths, places, labels)


def _check_table(path: Path) -> None:
    try:
        check_regular(path)
    except OSError as error:
        raise OSError(f"{path} cannot be read ({one_line(error)}); it must be a table of images") from error


def split_pathfinder(
    images: PathfinderImages, *, split_seed: int = 0
) -> tuple[PathfinderImages, PathfinderImages, PathfinderImages]:
    """Training, validation and test images, 80, 10 and 10 % of a shuffled order; the release has no split of its own.

    Raises:
        ValueError: there are fewer than ten images.
    """
    if len(images) < 10:
        raise ValueError(f"at least ten images are needed for three splits; got {len(images)}")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(split_seed)).tolist()
    held = math.ceil(len(images) / 10)
    parts = (order[: -2 * held], order[-2 * held : -held], order[-held:])
    train, validation, test = (images.subset(part) for part in parts)
    return train, validation, test
