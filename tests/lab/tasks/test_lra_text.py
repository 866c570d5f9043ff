from pathlib import Path

import pytest

from preconditioned_attention.lab.tasks import Text
from tests.helpers.long_range_trees import write_imdb


def test_the_test_split_is_the_validation_split(tmp_path: Path) -> None:
    task = Text(data=str(write_imdb(tmp_path / "aclImdb")), positions=12, dim=8)
    splits = task.datasets()
    assert (len(splits.train), len(splits.test)) == (6, 6)
    assert splits.validation is splits.test
    ids, labels = splits.collate([splits.train[0], splits.train[5]])
    assert (ids.shape, labels.tolist()) == ((2, 12), [0, 1])  # cut to what the model can take
    assert task.build_model()(ids).shape == (2, 2)
    assert task.baselines() == {"majority": 0.5}


def test_no_data() -> None:
    with pytest.raises(
        ValueError, match=r"data must be the folder aclImdb .*; give it with --task-options data=FOLDER"
    ):
        Text().datasets()
