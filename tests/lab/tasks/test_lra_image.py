from pathlib import Path

from preconditioned_attention.lab.tasks import Image
from tests.helpers.long_range_trees import write_cifar10


def test_splits(tmp_path: Path) -> None:
    task = Image(data=str(write_cifar10(tmp_path / "cifar-10-batches-py")), dim=8)
    splits = task.datasets()
    assert [len(split) for split in (splits.train, splits.validation, splits.test)] == [18, 2, 4]
    (ids,) = task.example_batch(2)
    assert ids.shape == (2, 1024)
    assert task.build_model()(ids).shape == (2, 10)
