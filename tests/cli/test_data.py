import json
from pathlib import Path

import pytest

from preconditioned_attention.cli import main
from preconditioned_attention.cli.data import data
from preconditioned_attention.lab.data.listops import read_listops
from preconditioned_attention.lab.data.pathfinder import read_pathfinder


def test_digit_scenes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "scenes"
    options = ["--count", "3", "--held-out", "2", "--seed", "4", "--classes", "10", "--image-size", "64"]
    assert main(["data", "digit-scenes", "--output", str(output), *options]) == 0
    assert "3 training, 2 validation and 2 test scenes" in capsys.readouterr().out
    written = json.loads((output / "annotations" / "instances_train.json").read_text())
    expected = {"count": 3, "held_out": 2, "seed": 4, "classes": 10, "image_size": 64}
    assert written["info"]["options"] == expected
    assert main(["data", "digit-scenes", "--output", str(output)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_listops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--output", str(tmp_path / "out"), "--count", "3", "--held-out", "2", "--seed", "1", "--jobs", "1"]
    assert main(["data", "listops", *options]) == 0
    assert "3 training, 2 validation and 2 test expressions" in capsys.readouterr().out
    assert [len(read_listops(tmp_path / "out", split)) for split in ("train", "val", "test")] == [3, 2, 2]
    assert main(["data", "listops", *options]) == 2
    assert "exists already" in capsys.readouterr().err


def test_pathfinder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--output", str(tmp_path / "out"), "--count", "3", "--difficulty", "easy", "--jobs", "1"]
    assert main(["data", "pathfinder", *options]) == 0
    assert f"3 images in {tmp_path / 'out' / 'curv_baseline'}" in capsys.readouterr().out
    assert len(read_pathfinder(tmp_path / "out" / "curv_baseline")) == 3


@pytest.mark.parametrize("name", sorted(data))
def test_every_dataset_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["data", name, "--help"])
    assert ended.value.code == 0
    assert "--output" in capsys.readouterr().out


def test_an_unknown_dataset_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["data", "digit-scene"])
    assert ended.value.code == 2
    assert "digit-scenes" in capsys.readouterr().err
