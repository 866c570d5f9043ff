"""The task Pathfinder32 of the Long Range Arena: do two discs lie on the same path? Pixel by pixel.

As in Nystromformer's runs id 0, a black pixel, counts as padding: attention and the sum over tokens ignore it,
which is more than half of an image.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from ..._checks import check_integer
from ...config import check_choice
from ..data.digits import check_split_seed
from ..data.pathfinder import FOLDERS, PathfinderImages, read_pathfinder, split_pathfinder
from ..data.pathfinder_drawing import SIZE
from ..data.sequences import collate_sequences
from .lra import LongRangeTask
from .task import Splits


@dataclass(frozen=True, kw_only=True)
class Pathfinder(LongRangeTask):
    """The ``lra-pathfinder`` task.

    Args:
        data: the folder that holds the difficulties, as ``precond data pathfinder`` writes it.
        difficulty: ``"easy"``, ``"intermediate"`` or ``"hard"``.
        split_seed: decides which images are for training, validation and test.
        positions, attention, ...: the model's; see :class:`LongRangeTask`.
    """

    positions: int = 1024
    difficulty: str = "hard"
    split_seed: int = 0

    name: ClassVar[str] = "lra-pathfinder"
    vocabulary: ClassVar[int] = 512
    classes: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("positions", self.positions, minimum=SIZE * SIZE)
        check_choice("difficulty", self.difficulty, tuple(FOLDERS))
        check_split_seed(self.split_seed)

    def datasets(self) -> Splits:
        """Gray values, and 1 if the discs lie on the same path."""
        name = FOLDERS[self.difficulty]
        folder = self.folder(f"the folder with {name}/, which precond data pathfinder writes")
        try:
            train, validation, test = split_pathfinder(_read(folder / name), split_seed=self.split_seed)
        except ValueError as error:
            raise ValueError(f"{folder / name}: {error}") from error
        return Splits(train, validation, test, collate_sequences)


@lru_cache(maxsize=1)
def _read(folder: Path) -> PathfinderImages:
    return read_pathfinder(folder)
