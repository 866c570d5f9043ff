from pathlib import Path

from preconditioned_attention.lab.tasks import Retrieval
from tests.helpers.long_range_trees import write_aan


def test_pairs_go_through_the_model(tmp_path: Path) -> None:
    task = Retrieval(data=str(write_aan(tmp_path / "tsv_data")), positions=32, dim=8, num_landmarks=4)
    splits = task.datasets()
    assert [len(split) for split in (splits.train, splits.validation, splits.test)] == [6, 3, 3]
    batch = splits.collate([splits.train[index] for index in range(4)])
    loss = task.loss(task.build_model(), batch)
    loss.backward()
    assert loss.isfinite()
    first, second = task.example_batch(2)
    assert task.build_model()(first, second).shape == (2, 2)
