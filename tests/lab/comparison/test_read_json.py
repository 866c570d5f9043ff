"""Files of a comparison that are not what they should be: one sentence that names the file, and nothing is changed."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from preconditioned_attention.cli import main
from preconditioned_attention.lab.comparison import compare
from preconditioned_attention.lab.comparison.read_json import check_entry, read_object
from preconditioned_attention.lab.training import TrainConfig, train
from tests.helpers.digits_task import TASK, digits_options
from tests.helpers.synthetic_runs import run

STEM = "row-seed0-lr0.001"
Damage = Callable[[Path], object]


@pytest.fixture(scope="module", autouse=True)
def _without_plots():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("preconditioned_attention.lab.comparison.report.draw_figures", lambda *_: {})
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    go_on(folder)
    return folder


@pytest.fixture
def folder(tmp_path, whole) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "folder"))


def go_on(folder: Path) -> None:
    compare(run, output=folder, learning_rates=(1e-3,), seeds=(0,), settings={"a": 1}, resume=True, verbose=False)


def put(*place: str | int, value: Any) -> Damage:
    """Replace an entry of the file."""

    def damage(path: Path) -> None:
        content = json.loads(path.read_text())
        inner = content
        for name in place[:-1]:
            inner = inner[name]
        inner[place[-1]] = value
        path.write_text(json.dumps(content))

    return damage


def drop(*place: str) -> Damage:
    """Remove an entry of the file."""

    def damage(path: Path) -> None:
        content = json.loads(path.read_text())
        inner = content
        for name in place[:-1]:
            inner = inner[name]
        del inner[place[-1]]
        path.write_text(json.dumps(content))

    return damage


def write(content: bytes) -> Damage:
    return lambda path: path.write_bytes(content)


def replace(old: str, new: str) -> Damage:
    def damage(path: Path) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return damage


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


ANY_FILE: dict[str, Damage] = {
    "empty": write(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:200]),
    "a list": write(b"[1]"),
    "a number": write(b"3"),
    "null": write(b"null"),
    "no JSON": write(b"status: finished"),
    "not UTF-8": write(b'{"title": "\xff"}'),
    "UTF-16": lambda path: path.write_bytes(path.read_text().encode("utf-16")),
    "nested deeply": write(b'{"a": ' + b"[" * 100_000),
    "a folder": make_folder,
    "a pipe": make_pipe,
    "newer": put("format", value=2),
    "format as text": put("format", value="1"),
    "format true": put("format", value=True),
    "unknown entry": put("nonsense", value=1),
}

RECORD: dict[str, Damage] = {
    "NaN": replace('"seconds":', '"seconds": NaN, "x":'),
    "Infinity": replace('"validation":', '"validation": Infinity, "x":'),
    "an entry twice": replace('"status":', '"status": "failed", "status":'),
    "no description": drop("description"),
    "no status": drop("status"),
    "no metrics": drop("metrics"),
    "no seconds": drop("seconds"),
    "no weights": drop("weights"),
    "no format": drop("format"),
    "no seed": drop("description", "seed"),
    "description a list": put("description", value=[]),
    "seed a text": put("description", "seed", value="0"),
    "seed true": put("description", "seed", value=False),
    "seed negative": put("description", "seed", value=-1),
    "seed a fraction": put("description", "seed", value=0.5),
    "rate a text": put("description", "learning_rate", value="0.001"),
    "rate zero": put("description", "learning_rate", value=0),
    "rate null": put("description", "learning_rate", value=None),
    "arm a number": put("description", "arm", value=3),
    "metric null": put("description", "metric", value=None),
    "settings a list": put("description", "settings", value=[1]),
    "config a text": put("description", "config", value="full"),
    "config unknown": put("description", "config", "nonsense", value=1),
    "config impossible": put("description", "config", "gradient", value="half"),
    "variant a number": put("description", "variant", value=3),
    "status unknown": put("status", value="done"),
    "status null": put("status", value=None),
    "failed without a reason": put("status", value="failed"),
    "reason a number": put("reason", value=3),
    "traceback a list": put("traceback", value=[]),
    "finished without metrics": put("metrics", value=None),
    "metrics a list": put("metrics", value=[]),
    "metrics unknown": put("metrics", "nonsense", value=1),
    "no test": drop("metrics", "test"),
    "validation a text": put("metrics", "validation", value="0.5"),
    "validation true": put("metrics", "validation", value=True),
    "finished with nan": put("metrics", "test", value="nan"),
    "losses a text": put("metrics", "losses", value="1.0"),
    "losses null": put("metrics", "losses", value=[None]),
    "losses not finite": put("metrics", "losses", value=[1.0, "inf"]),
    "seconds_per_step zero": put("metrics", "seconds_per_step", value=0),
    "seconds_per_step a text": put("metrics", "seconds_per_step", value="fast"),
    "evaluations an object": put("metrics", "evaluations", value={}),
    "evaluations of numbers": put("metrics", "evaluations", value=[3]),
    "evaluations without the metric": put("metrics", "evaluations", value=[{"step": 1}]),
    "conditioning empty rows": put("metrics", "conditioning", value=[{}]),
    "conditioning of numbers": put("metrics", "conditioning", value=[3]),
    "moment unknown": put("metrics", "conditioning", 0, "moment", value="later"),
    "moment a list": put("metrics", "conditioning", 0, "moment", value=[]),
    "kappa a text": put("metrics", "conditioning", 0, "kappa_before", value="large"),
    "extra a number": put("metrics", "extra", value=3),
    "pictures a list": put("metrics", "pictures", value=[]),
    "picture without content": put("metrics", "pictures", value={"a": {"caption": ""}}),
    "picture not base 64": put("metrics", "pictures", value={"a": {"png": "a", "description": "", "caption": ""}}),
    "weights a text": put("weights", value="abc"),
    "weights of numbers": put("weights", value=[1]),
    "weights empty": put("weights", value=[]),
    "random_states null": put("random_states", value=None),
    "seconds negative": put("seconds", value=-1),
    "seconds a text": put("seconds", value="1"),
    "started no time": put("started", value="yesterday"),
    "started without a zone": put("started", value="2026-01-01T00:00:00"),
    "started a number": put("started", value=3),
    "environment a list": put("environment", value=[]),
    "packages a list": put("environment", "packages", value=[]),
    "comparison missing": drop("comparison"),
    "comparison a list": put("comparison", value=[]),
    "title a number": put("comparison", "title", value=3),
    "baselines of texts": put("comparison", "baselines", value={"majority": "low"}),
}

PLAN: dict[str, Damage] = {
    "NaN": replace('"baselines": {', '"baselines": {"x": NaN'),
    "an arm twice": replace('"arms": {', '"arms": {"plain": null,'),
    "no arms": drop("arms"),
    "no title": drop("title"),
    "arms a list": put("arms", value=["plain"]),
    "arms without plain": drop("arms", "plain"),
    "arm a number": put("arms", "row", value=3),
    "arm unknown option": put("arms", "row", value={"nonsense": 1}),
    "arm impossible name": put("arms", "a/b", value=None),
    "seeds a number": put("seeds", value=0),
    "seeds empty": put("seeds", value=[]),
    "seeds twice": put("seeds", value=[0, 0]),
    "seeds texts": put("seeds", value=["0"]),
    "seeds of lists": put("seeds", value=[[0]]),
    "rates negative": put("learning_rates", value=[-1]),
    "metric null": put("metric", value=None),
    "metric empty": put("metric", value=""),
    "higher_is_better a text": put("higher_is_better", value="yes"),
    "settings a list": put("settings", value=[]),
    "variants of plain": put("variants", value={"plain": {}}),
    "variants of numbers": put("variants", value={"row": 3}),
    "baselines of texts": put("baselines", value={"majority": "low"}),
}


def contents(folder: Path) -> dict[str, bytes | None]:
    files = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in files}


def check(folder: Path, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both commands name ``path`` in one line, and change nothing."""
    before = contents(folder)
    with pytest.raises((ValueError, OSError)) as caught:
        go_on(folder)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert main(["report", str(folder), "--output", str(folder.parent / "report")]) == 2
    shown = capsys.readouterr().err
    assert str(path) in shown
    assert shown.count("\n") == 1
    assert contents(folder) == before
    assert not (folder.parent / "report").exists()


@pytest.mark.parametrize("name", [*ANY_FILE, *RECORD])
def test_a_record_that_is_none(folder, capsys, name):
    path = folder / "runs" / STEM / "run.json"
    (ANY_FILE | RECORD)[name](path)
    check(folder, path, capsys)


@pytest.mark.parametrize("name", [*ANY_FILE, *PLAN])
def test_a_plan_that_is_none(folder, capsys, name):
    path = folder / "comparison.json"
    (ANY_FILE | PLAN)[name](path)
    check(folder, path, capsys)


@pytest.mark.parametrize("name", [name for name in ANY_FILE if name not in ("newer", "format as text", "format true")])
def test_a_record_of_an_earlier_version_that_is_none(folder, capsys, name):
    path = folder / "runs" / f"{STEM}.json"
    content = json.loads((folder / "runs" / STEM / "run.json").read_text())
    shutil.rmtree(folder / "runs" / STEM)
    path.write_text(json.dumps({key: value for key, value in content.items() if key not in ("format", "comparison")}))
    go_on(folder)
    ANY_FILE[name](path)
    check(folder, path, capsys)


def test_a_copy_of_a_run_under_another_name(folder):
    shutil.copytree(folder / "runs" / STEM, folder / "runs" / "copy")
    with pytest.raises(ValueError, match=rf"copy/run\.json is the record of run {STEM}.*remove it if it is a copy"):
        go_on(folder)
    (folder / "runs" / STEM).rename(folder / "runs" / "row-seed0-lr0.1")
    with pytest.raises(ValueError, match=f"rename the folder to {STEM}"):
        go_on(folder)


def test_a_run_of_another_comparison(folder):
    put("description", "settings", value={"a": 2})(folder / "runs" / STEM / "run.json")
    with pytest.raises(FileExistsError, match=rf"{STEM}/run\.json belongs to another comparison"):
        go_on(folder)


def test_a_plan_that_is_missing_is_written_anew(folder):
    content = (folder / "comparison.json").read_bytes()
    (folder / "comparison.json").unlink()
    go_on(folder)
    assert (folder / "comparison.json").read_bytes() == content


def test_a_dangling_link_is_a_run_that_is_not_done(folder):
    path = folder / "runs" / STEM / "run.json"
    path.unlink()
    path.symlink_to(folder / "nowhere")
    assert main(["report", str(folder)]) == 0
    go_on(folder)
    assert path.is_file()


def test_a_loop_of_links_is_followed_once(folder, tmp_path):
    (folder / "runs" / STEM / "again").symlink_to(folder)
    (tmp_path / "loop").symlink_to(tmp_path)
    assert main(["report", str(tmp_path), "--output", str(tmp_path / "report")]) == 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    options = digits_options(patch_size=4, embed_dim=16, depth=1, num_heads=1)
    config = TrainConfig(task=TASK, task_options=options, steps=2, batch_size=16, learning_rate=1e-3)
    folder = tmp_path_factory.mktemp("trained")
    train(config, folder / "plain", progress=False)
    return folder


TRAINED: dict[str, tuple[str, Damage]] = {
    "configuration empty": ("config.yaml", write(b"")),
    "configuration a list": ("config.yaml", write(b"- 1")),
    "configuration not UTF-8": ("config.yaml", write(b"task: \xff")),
    "configuration of an unknown task": ("config.yaml", replace("task: image-classification", "task: nonsense")),
    "configuration with another option": ("config.yaml", replace("steps: 2", "stepz: 2")),
    "result empty": ("result.json", write(b"")),
    "result a list": ("result.json", write(b"[]")),
    "result truncated": ("result.json", lambda path: path.write_bytes(path.read_bytes()[:100])),
    "result not UTF-8": ("result.json", write(b"\xff")),
    "result with NaN": ("result.json", replace('"accuracy": ', '"accuracy": NaN, "x": ')),
    "result without the metric": ("result.json", drop("test", "accuracy")),
    "result without hashes": ("result.json", drop("initial_weights")),
    "result with a number for a hash": ("result.json", put("random_state", value=3)),
    "metrics empty": ("metrics.jsonl", write(b"")),
    "metrics missing": ("metrics.jsonl", Path.unlink),
    "metrics not UTF-8": ("metrics.jsonl", write(b"\xff\n")),
    "metrics of another run": ("metrics.jsonl", write(b'{"kind": "step", "step": 1}\n')),
}


@pytest.mark.parametrize("name", TRAINED)
def test_a_run_of_train_that_is_none(trained, tmp_path, capsys, name):
    shutil.copytree(trained, tmp_path / "runs")
    file, damage = TRAINED[name]
    path = tmp_path / "runs" / "plain" / file
    damage(path)
    before = contents(tmp_path / "runs")
    assert main(["report", str(tmp_path / "runs"), "--output", str(tmp_path / "report")]) == 2
    shown = capsys.readouterr().err
    assert str(path) in shown
    assert shown.count("\n") == 1
    assert contents(tmp_path / "runs") == before
    assert not (tmp_path / "report").exists()


def test_objects_are_read_strictly(tmp_path):
    (tmp_path / "file").write_text('{"a": 1}')
    assert read_object(tmp_path / "file", "a file") == {"a": 1}
    (tmp_path / "file").write_text('{"a": {"b": 1, "b": 2}}')
    with pytest.raises(ValueError, match="'b' is there twice"):
        read_object(tmp_path / "file", "a file")


def test_true_is_no_number():
    assert check_entry({"a": 1}, "a", (float, int)) == 1
    with pytest.raises(TypeError, match="'a' must be a number or an integer; got true or false"):
        check_entry({"a": True}, "a", (float, int))
    with pytest.raises(ValueError, match="'a' is missing"):
        check_entry({}, "a", int)
