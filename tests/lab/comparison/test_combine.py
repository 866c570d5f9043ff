import errno
import json
import shutil
from pathlib import Path

import pytest

from preconditioned_attention.lab.comparison import FairnessError, Outcome, Plan, Prepare, compare, report_runs
from preconditioned_attention.lab.comparison.job import Job, do_run
from preconditioned_attention.lab.comparison.store import RunStore
from preconditioned_attention.lab.training import Arm, TrainConfig, train
from tests.helpers.comparison_results import results_without_times
from tests.helpers.digits_task import TASK, digits_options
from tests.helpers.synthetic_runs import ARMS, run, tiny_model

RATES = (1e-4, 1e-3, 1e-2)
SETTINGS = {"steps": 40}


def compared(folder: Path, chosen_run=run, **options):
    given = {"learning_rates": RATES, "verbose": False, "settings": SETTINGS, "seeds": (1, 0, 2), "title": "Title"}
    return compare(chosen_run, output=folder, **given | options)


@pytest.fixture(scope="module", autouse=True)
def _without_plots():
    """Drawing takes most of the time of a report, and other tests look at the plots."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("preconditioned_attention.lab.comparison.report.draw_figures", lambda *_: {})
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    compared(folder)
    return folder


def copied(whole: Path, to: Path, *, keep=lambda name: True) -> Path:
    """A comparison's folder with some of the runs, as another machine would have it."""
    shutil.copytree(whole, to, ignore=lambda _, names: [n for n in names if "-seed" in n and not keep(n)])
    for path in to.iterdir():
        if path.name not in ("runs", "comparison.json"):
            path.unlink()
    return to


def change(path: Path, **values: object) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | values))


def change_run(folder: Path, stem: str, entry: str, **values: object) -> Path:
    path = folder / "runs" / stem / "run.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {entry: content[entry] | values}))
    return path.parent


@pytest.mark.parametrize(
    "part_of",
    [
        lambda name: int("seed1" in name) + 2 * int("seed2" in name),
        lambda name: sorted(ARMS).index(name.split("-seed")[0]),
        lambda name: sum(map(ord, name)) % 3,
    ],
    ids=["seeds", "arms", "mixed"],
)
def test_three_machines_give_what_one_gives(tmp_path, whole, part_of):
    parts = [copied(whole, tmp_path / f"part{i}", keep=lambda name, i=i: part_of(name) == i) for i in range(3)]
    comparison = report_runs([parts[2], parts[0], parts[1]], output=tmp_path / "report")
    assert results_without_times(tmp_path / "report") == results_without_times(whole)
    assert not comparison.missing()
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == sorted(
        path.name for path in whole.iterdir() if path.name not in ("runs", "comparison.json")
    )


def test_run_folders_alone_and_folders_of_folders_are_enough(tmp_path, whole):
    for path in (whole / "runs").iterdir():
        shutil.copytree(path, tmp_path / f"machine-{'plain' in path.name}" / f"renamed {path.name}")
    comparison = report_runs([tmp_path], output=tmp_path / "report")
    assert comparison.title == "Title"
    assert comparison.plan.seeds == (0, 1, 2)  # without comparison.json, ascending
    expected = results_without_times(whole)["summary"]["arms"]["row"]
    assert comparison.summaries["row"].difference.mean == pytest.approx(expected["difference"]["mean"])


def test_the_files_of_an_earlier_version_are_read_with_todays_names(tmp_path, whole):
    folder = copied(whole, tmp_path / "folder")
    for path in sorted(folder.glob("runs/*/run.json")):
        content = json.loads(path.read_text())
        description = content["description"]
        former = {"row": "row-full", "row-stopgrad": "row-stop"}.get(description["arm"], description["arm"])
        old = {name: value for name, value in content.items() if name not in ("format", "comparison")}
        name = path.parent.name.replace(f"{description['arm']}-seed", f"{former}-seed")
        old |= {"description": description | {"arm": former}}
        (folder / "runs" / f"{name}.json").write_text(json.dumps(old))
        shutil.rmtree(path.parent)
    report_runs([folder])
    assert results_without_times(folder) == results_without_times(whole)
    (folder / "comparison.json").unlink()
    with pytest.raises(ValueError, match=r"seed0-lr0\.0001\.json was written by an earlier version.*compare --resume"):
        report_runs([folder])


def test_the_default_output_is_the_comparison_itself(tmp_path, whole):
    folder = copied(whole, tmp_path / "folder")
    assert report_runs([folder]).report == folder / "report.html"
    first = results_without_times(folder)
    report_runs([folder])
    assert results_without_times(folder) == first == results_without_times(whole)
    assert (folder / "comparison.json").exists()


def test_missing_runs_are_listed_and_their_rate_is_not_chosen(tmp_path, whole):
    gone = {
        "row-seed2-lr0.001",
        "row-stopgrad-seed0-lr0.0001",
        "row-stopgrad-seed1-lr0.001",
        "row-stopgrad-seed1-lr0.01",
    }
    folder = copied(whole, tmp_path / "folder", keep=lambda name: name not in gone)
    comparison = report_runs([folder])
    assert {key.stem for key in comparison.missing()} == gone
    assert comparison.summaries["row"].learning_rate == 1e-4
    assert comparison.summaries["row-stopgrad"].learning_rate is None
    assert comparison.verdicts["row-stopgrad"].outcome is Outcome.INCOMPLETE
    assert "1 of 9 runs has not ended yet" in " ".join(comparison.verdicts["row"].sentences)
    page = comparison.report.read_text()
    assert "4 of them not ended yet" in page
    assert "not ended (1 of 3 seeds)" in page
    summary = json.loads((folder / "summary.json").read_text())
    assert {(run["arm"], run["seed"], run["learning_rate"]) for run in summary["missing"]} == {
        (key.arm, key.seed, key.learning_rate) for key in comparison.missing()
    }
    assert summary["arms"]["row"]["rates"][1]["missing_seeds"] == [2]


def test_a_reference_that_is_not_complete_is_no_failure(tmp_path, whole):
    folder = copied(whole, tmp_path / "folder", keep=lambda name: not name.startswith("plain-seed0"))
    comparison = report_runs([folder])
    assert comparison.verdicts["plain"].outcome is Outcome.INCOMPLETE
    assert "The reference plain has no result yet" in comparison.verdicts["row"].sentences[0]


def test_a_comparison_that_has_not_begun_has_a_report(tmp_path, whole):
    folder = copied(whole, tmp_path / "folder", keep=lambda name: False)
    comparison = report_runs([folder])
    assert len(comparison.missing()) == 27
    assert {verdict.outcome for verdict in comparison.verdicts.values()} == {Outcome.INCOMPLETE}


def test_every_machine_is_named_and_ratios_of_time_stay_on_one(tmp_path, whole):
    first = copied(whole, tmp_path / "a", keep=lambda name: "seed2" not in name)
    second = copied(whole, tmp_path / "b", keep=lambda name: "seed2" in name)
    for path in second.glob("runs/*/run.json"):
        change_run(second, path.parent.name, "environment", host="node-7", gpu="H100")
    started = "2026-01-01T00:00:0{}+00:00"
    for index, path in enumerate(sorted(second.glob("runs/*/run.json"))):
        change(path, started=started.format(index % 3), seconds=0.5)
    comparison = report_runs([first, second], output=tmp_path / "report")
    machines = {machine.host: machine for machine in comparison.machines}
    assert (machines["node-7"].runs, machines["node-7"].at_a_time) == (9, 3)
    assert sum(machine.runs for machine in machines.values()) == 27
    summary = json.loads((tmp_path / "report" / "summary.json").read_text())
    assert [machine["host"] for machine in summary["machines"]] == sorted(machines)
    assert summary["environment"]["gpu"] == ["H100", None] or summary["environment"]["gpu"] == [None, "H100"]
    page = comparison.report.read_text()
    assert "node-7" in page
    assert "of pairs that one machine measured" in page
    change_run(second, "row-seed2-lr0.001", "environment", host="node-8")
    fewer = report_runs([first, second], output=tmp_path / "report", overwrite=True)
    ratios = [one.summaries["row"].time_ratio.values for one in (comparison, fewer)]
    assert (len(ratios[0]), len(ratios[1])) == (9, 8)


def test_a_run_that_is_there_twice_counts_once(tmp_path, whole):
    copied(whole, tmp_path / "a")
    copied(whole, tmp_path / "b")
    change(tmp_path / "b" / "runs" / "row-seed0-lr0.001" / "run.json", seconds=99.0)
    (tmp_path / "link").symlink_to(tmp_path / "b")
    report_runs([tmp_path / "a", tmp_path / "b", tmp_path / "link", tmp_path / "a"], output=tmp_path / "report")
    assert results_without_times(tmp_path / "report") == results_without_times(whole)


def test_the_same_run_with_other_numbers_is_refused(tmp_path, whole):
    first, second = copied(whole, tmp_path / "a"), copied(whole, tmp_path / "b")
    folder = change_run(second, "row-seed0-lr0.001", "metrics", test=0.123)
    with pytest.raises(ValueError, match=r"the same run, row-seed0-lr0\.001, with different numbers") as caught:
        report_runs([first, second], output=tmp_path / "report")
    assert str(folder) in str(caught.value)
    assert str(first / "runs" / "row-seed0-lr0.001") in str(caught.value)
    assert not (tmp_path / "report").exists()


def test_a_repetition_that_finished_stands_for_the_failure(tmp_path, whole):
    first, second = copied(whole, tmp_path / "a"), copied(whole, tmp_path / "b")
    for folder in (first, second):
        path = folder / "runs" / "row-seed0-lr0.001" / "run.json"
        change(path, status="failed", reason="out of memory", metrics=None)
        comparison = report_runs([first, second], output=tmp_path / "report", overwrite=True)
        assert comparison.records[next(key for key in comparison.records if key.stem == path.parent.name)].finished == (
            folder == first
        )


DIFFERENT = {
    "metric": ("metric is 'accuracy'", {"metric": "f1"}),
    "settings": ("setting steps is 40 in the first and 41 in the second", {"settings": {"steps": 41}}),
    "more settings": ("setting depth is None", {"settings": SETTINGS | {"depth": 2}}),
    "arm": ("config of arm row is", {"config": {"gradient": "full", "gain": 1.0}}),
    "variant": ("variant of arm row is None in the first and {'depth': 2}", {"variant": {"depth": 2}}),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_runs_that_cannot_be_compared_are_refused_with_both_folders(tmp_path, whole, name):
    words, values = DIFFERENT[name]
    (tmp_path / "runs").mkdir()
    for stem in ("plain-seed0-lr0.001", "row-seed0-lr0.001", "row-seed1-lr0.001"):
        shutil.copytree(whole / "runs" / stem, tmp_path / "runs" / stem)
    folder = change_run(tmp_path, "row-seed1-lr0.001", "description", **values)
    if name == "metric":
        content = json.loads((folder / "run.json").read_text())["metrics"]
        change_run(tmp_path, folder.name, "metrics", evaluations=[{**row, "f1": 0.5} for row in content["evaluations"]])
    with pytest.raises(ValueError, match="cannot be compared") as caught:
        report_runs([tmp_path], output=tmp_path / "report")
    assert words in str(caught.value)
    assert str(folder) in str(caught.value)
    assert str(caught.value).count(str(tmp_path / "runs")) == 2
    assert not (tmp_path / "report").exists()


def test_versions_of_the_method_are_not_mixed(tmp_path, whole):
    folder = copied(whole, tmp_path / "folder")
    changed = change_run(folder, "row-seed1-lr0.001", "environment", packages={"preconditioned-attention": "0.0.1"})
    with pytest.raises(ValueError, match="version of preconditioned-attention is") as caught:
        report_runs([folder])
    assert str(changed) in str(caught.value)
    with pytest.raises(FileExistsError, match=r"version of preconditioned-attention was 0\.0\.1"):
        compared(folder, resume=True)


@pytest.mark.parametrize(("entry", "words"), [("weights", "initial weights"), ("random_states", "random states")])
def test_runs_of_one_seed_that_began_differently_are_refused(tmp_path, whole, entry, words):
    folder = copied(whole, tmp_path / "folder")
    change(folder / "runs" / "row-seed1-lr0.001" / "run.json", **{entry: ["other"]})
    with pytest.raises(FairnessError, match=f"seed 1: .*different {words}") as caught:
        report_runs([folder])
    assert str(folder / "runs" / "row-seed1-lr0.001") in str(caught.value)
    assert str(caught.value).count(str(folder / "runs")) == 2


def test_plans_that_differ_are_refused(tmp_path, whole):
    first, second = copied(whole, tmp_path / "a"), copied(whole, tmp_path / "b", keep=lambda name: False)
    change(second / "comparison.json", higher_is_better=False)
    with pytest.raises(ValueError, match="are different comparisons: higher_is_better was True, is False") as caught:
        report_runs([first, second], output=tmp_path / "report")
    assert str(second / "comparison.json") in str(caught.value)
    with pytest.raises(ValueError, match="cannot be compared: higher_is_better"):
        report_runs([second, *(first / "runs").iterdir()], output=tmp_path / "report")


def test_runs_without_the_reference_are_refused(tmp_path, whole):
    shutil.copytree(whole / "runs" / "row-seed0-lr0.001", tmp_path / "run")
    with pytest.raises(ValueError, match="no run of arm 'plain'"):
        report_runs([tmp_path / "run"], output=tmp_path / "report")


def test_what_holds_no_run_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for name, words in {"empty": "holds no run", "file": "it is a file", "absent": "does not exist"}.items():
        with pytest.raises(ValueError, match=f"{name} .*{words}|{words}"):
            report_runs([tmp_path / name], output=tmp_path / "report")
    with pytest.raises(ValueError, match="at least one folder"):
        report_runs([])


def test_the_folder_above_runs_is_searched(tmp_path, whole, monkeypatch):
    """Where commands were called, ``runs`` holds comparisons and runs of ``train``."""
    copied(whole, tmp_path / "runs" / "compare-mine")
    monkeypatch.chdir(tmp_path)
    assert report_runs(["."]).output == Path("runs/report")
    assert results_without_times(tmp_path / "runs" / "report") == results_without_times(whole)
    report_runs(["."], output=tmp_path)


def test_nothing_is_replaced_unasked(tmp_path, whole):
    first, second = copied(whole, tmp_path / "a"), copied(whole, tmp_path / "b")
    report_runs([first], output=tmp_path / "report")
    with pytest.raises(FileExistsError, match="--overwrite replaces them"):
        report_runs([first], output=tmp_path / "report")
    with pytest.raises(FileExistsError, match="a comparison of its own"):
        report_runs([first], output=second, overwrite=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError, match="file is a file; choose a folder"):
        report_runs([first], output=tmp_path / "file", overwrite=True)
    with pytest.raises(FileExistsError, match="holds a run"):
        report_runs([first], output=first / "runs" / "row-seed0-lr0.001", overwrite=True)


@pytest.mark.parametrize("name", ["summary.json", "runs.json.gz", "report.html"])
def test_a_full_disk_leaves_every_file_of_a_report_whole(tmp_path, whole, monkeypatch, name):
    folder = copied(whole, tmp_path / "folder", keep=lambda stem: "seed2" not in stem)
    report_runs([folder])
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for path in (whole / "runs").glob("*seed2*"):
        shutil.copytree(path, folder / "runs" / path.name)

    def full(path: Path) -> None:
        if path.name.startswith(f".{name}"):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("preconditioned_attention._files._flush_to_disk", full)
    with pytest.raises(OSError, match=f"{name} could not be written: No space left"):
        report_runs([folder])
    assert (folder / name).read_bytes() == before[folder / name]
    assert not list(folder.rglob(".*"))
    monkeypatch.undo()
    report_runs([folder])
    assert results_without_times(folder) == results_without_times(whole)


def test_runs_of_train_are_runs_of_a_comparison(tmp_path):
    options = digits_options(patch_size=4, embed_dim=16, depth=1, num_heads=1)
    config = TrainConfig(task=TASK, task_options=options, steps=2, batch_size=16, learning_rate=1e-3)
    for name, arm in {"plain": None, "row": Arm()}.items():
        for seed in (0, 1):
            one = TrainConfig.from_dict(config.to_dict() | {"seed": seed, "precondition": arm and arm.to_dict()})
            train(one, tmp_path / f"{name}{seed}", progress=False)
    unfinished = TrainConfig.from_dict(config.to_dict() | {"seed": 2})
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.yaml").write_text(unfinished.to_yaml())
    comparison = report_runs([tmp_path], output=tmp_path / "report")
    assert list(comparison.plan.arms) == ["plain", "row"]
    assert [key.stem for key in comparison.missing()] == ["plain-seed2-lr0.001", "row-seed2-lr0.001"]
    assert all(len(record.metrics.losses) == 2 for record in comparison.records.values())
    assert len({record.weights[0] for record in comparison.records.values() if record.key.seed == 0}) == 1


def test_a_run_whose_record_was_lost_is_read_from_its_training(tmp_path):
    from preconditioned_attention.lab.comparison import task_run, task_settings

    options = digits_options(patch_size=4, embed_dim=16, depth=1, num_heads=1)
    config = TrainConfig(task=TASK, task_options=options, steps=2, batch_size=16, learning_rate=1e-3)
    plan = Plan(arms={"plain": None, "mine": Arm()}, seeds=(0,), learning_rates=(1e-3,), settings=task_settings(config))
    job = Job.begin(task_run(config), RunStore(tmp_path, plan), resume=False, overwrite=False)
    for key in plan.run_keys():
        assert do_run(job, key).finished
    before = report_runs([tmp_path])
    (tmp_path / "runs" / "mine-seed0-lr0.001" / "run.json").unlink()
    after = report_runs([tmp_path])
    assert not after.missing()
    assert after.summaries["mine"].test == before.summaries["mine"].test
    assert after.summaries["mine"].steps == before.summaries["mine"].steps


def test_the_reports_of_comparisons_say_what_they_said(tmp_path):
    """A comparison in this process and the report of its folder are the same files but for the date."""

    def other_model(prepare: Prepare, seed: int, learning_rate: float):
        if not prepare.options:
            return run(prepare, seed, learning_rate)
        prepare(tiny_model())
        if learning_rate == 1e-2:
            raise ArithmeticError("loss is nan")
        return {"validation": float("nan") if seed else 0.5, "test": 0.25}

    compared(
        tmp_path, other_model, arms={**ARMS, "deep": None}, variants={"deep": {"depth": 2}}, baselines={"majority": 0.1}
    )
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    report_runs([tmp_path])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == files
