from pathlib import Path

import pytest

from preconditioned_attention.lab.data.pathfinder import PathfinderOptions, write_pathfinder
from preconditioned_attention.lab.tasks import Pathfinder


def test_splits_and_model(tmp_path: Path) -> None:
    write_pathfinder(tmp_path, PathfinderOptions(count=20, difficulty="easy"))
    task = Pathfinder(data=str(tmp_path), difficulty="easy", dim=8)
    splits = task.datasets()
    assert [len(split) for split in (splits.train, splits.validation, splits.test)] == [16, 2, 2]
    batch = splits.collate([splits.train[index] for index in range(3)])
    assert batch[0].shape == (3, 1024)
    assert task.loss(task.build_model(), batch).isfinite()
    assert 0 <= task.baselines()["majority"] <= 1


def test_options_and_data(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="difficulty must be one of 'easy', 'intermediate', 'hard'"):
        Pathfinder(difficulty="long")
    with pytest.raises(FileNotFoundError, match=r"curv_contour_length_14 holds no metadata"):
        Pathfinder(data=str(tmp_path)).datasets()
