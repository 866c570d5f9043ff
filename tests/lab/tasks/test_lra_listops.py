from collections import Counter
from pathlib import Path

import pytest

from preconditioned_attention.lab.data.listops import ListOpsOptions, make_listops, write_listops
from preconditioned_attention.lab.tasks import ListOps

GENERATED = {"count": 300, "held_out": 50, "min_length": 5, "max_length": 30}
MODEL = {"positions": 32, "dim": 8, "num_landmarks": 4, "conv_kernel_size": 3}


def test_generated_and_read_data_are_the_same(tmp_path: Path) -> None:
    write_listops(tmp_path / "data", ListOpsOptions(**GENERATED, seed=4))
    generated = ListOps(**GENERATED, **MODEL, data_seed=4).datasets()
    read = ListOps(data=str(tmp_path / "data"), **MODEL).datasets()
    for name, size in (("train", 300), ("validation", 50), ("test", 50)):
        mine, theirs = getattr(generated, name), getattr(read, name)
        assert len(mine) == size
        assert all((mine[i][0].tolist(), mine[i][1]) == (theirs[i][0].tolist(), theirs[i][1]) for i in range(size))


def test_the_released_distribution_is_the_default() -> None:
    task = ListOps()
    assert (task.count, task.held_out, task.min_length, task.max_length, task.positions) == (
        96000,
        2000,
        501,
        1999,
        2048,
    )
    assert sum(parameter.numel() for parameter in task.build_model().parameters()) == 209_942


def test_baselines_count_roots() -> None:
    expressions = list(make_listops(ListOpsOptions(**GENERATED)))
    train, test = expressions[:300], expressions[350:]
    majority = Counter(target for _, target in train).most_common(1)[0][0]
    answers = {}
    for root in ("[MIN", "[MAX", "[MED", "[SM"):
        own = Counter(target for source, target in train if source.replace("( ", "").startswith(root))
        answers[root] = own.most_common(1)[0][0]
    right = [answers[source.replace("( ", "").split()[0]] == target for source, target in test]
    expected = {"majority": sum(target == majority for _, target in test) / 50, "root operator": sum(right) / 50}
    assert ListOps(**GENERATED, **MODEL).baselines() == pytest.approx(expected)


def test_options_that_do_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data names the folder .*so count, held_out"):
        ListOps(data="here", count=5)
    with pytest.raises(ValueError, match="max_length must be at most positions = 32; got 33"):
        ListOps(**{**GENERATED, **MODEL, "max_length": 33})
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*none; it must be the folder with basic_train"):
        ListOps(data=str(tmp_path / "none")).datasets()
    write_listops(tmp_path / "data", ListOpsOptions(**GENERATED))
    with pytest.raises(ValueError, match="positions must be at least 30, the longest expression; got 16"):
        ListOps(data=str(tmp_path / "data"), **{**MODEL, "positions": 16}).datasets()
