import dataclasses
import json
import pickle
from pathlib import Path

import pytest

from preconditioned_attention import PreconditionConfig
from preconditioned_attention.lab.comparison import Plan, RunKey, RunMetrics
from preconditioned_attention.lab.comparison.records import RunRecord
from preconditioned_attention.lab.comparison.store import RunStore
from preconditioned_attention.lab.training import Arm
from preconditioned_attention.lab.training.claim import ClaimedError
from tests.helpers.claim_holder import holding
from tests.helpers.former import FORMER
from tests.helpers.synthetic_runs import ARMS, conditioning, make_records

PLAN = Plan(arms=ARMS, seeds=(0,), learning_rates=(1e-3,))
ALL_FILES = (
    "summary.json",
    "runs.json.gz",
    "results.json",
    "report.html",
    "plot-validation.png",
    "picture-dot-row.png",
)


def open_store(folder: Path, plan: Plan = PLAN, *, resume: bool = False, overwrite: bool = False) -> RunStore:
    store = RunStore(folder, plan)
    store.begin(resume=resume, overwrite=overwrite)
    return store


def some_record() -> RunRecord:
    return make_all()[0]


def make_all() -> list[RunRecord]:
    reported = {"validation": 0.1, "test": 1 / 3, "losses": [1.0, 0.5], "conditioning": conditioning(), "remark": "x"}
    metrics = RunMetrics.from_returned(reported, metric="accuracy")
    records = make_records(PLAN, {(key.arm, key.seed, key.learning_rate): metrics for key in PLAN.run_keys()})
    return list(records.values())


def test_a_record_comes_back_as_it_was(tmp_path):
    open_store(tmp_path).write(some_record())
    again = open_store(tmp_path, resume=True).refresh()
    assert again == {some_record().key: some_record()}


def test_results_are_never_overwritten_unasked(tmp_path):
    open_store(tmp_path).write(some_record())
    before = sorted((path, path.read_bytes()) for path in tmp_path.rglob("*.json"))
    with pytest.raises(FileExistsError, match="resume=True continues"):
        open_store(tmp_path)
    assert sorted((path, path.read_bytes()) for path in tmp_path.rglob("*.json")) == before


def test_overwrite_removes_results_and_nothing_else(tmp_path):
    open_store(tmp_path).write(some_record())
    for name in (*ALL_FILES, "notes.txt", "plan.png"):
        (tmp_path / name).write_text("x")
    store = open_store(tmp_path, overwrite=True)
    assert store.refresh() == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["comparison.json", "notes.txt", "plan.png", "runs"]
    assert list((tmp_path / "runs").iterdir()) == []


def test_overwrite_removes_a_link_and_not_what_it_leads_to(tmp_path):
    store = open_store(tmp_path / "one")
    store.write(some_record())
    folder = store.folder(some_record().key)
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert open_store(tmp_path / "one", overwrite=True).refresh() == {}
    assert not folder.is_symlink()
    assert (tmp_path / "elsewhere" / "run.json").exists()


def test_overwrite_spares_a_comparison_in_which_another_process_writes(tmp_path):
    store = open_store(tmp_path)
    store.write(some_record())
    (tmp_path / "summary.json").write_text("x")
    with holding(store.folder(some_record().key)), pytest.raises(ClaimedError, match=some_record().key.stem):
        open_store(tmp_path, overwrite=True)
    assert (tmp_path / "summary.json").exists()
    assert open_store(tmp_path, resume=True).refresh() == {some_record().key: some_record()}


def test_records_are_read_again_when_they_change_and_forgotten_when_removed(tmp_path):
    store, other = open_store(tmp_path), RunStore(tmp_path, PLAN)
    record = some_record()
    assert other.read(record.key) is None
    store.write(record)
    assert other.read(record.key) == record
    store.write(dataclasses.replace(record, seconds=77.0, reason="a longer text"))
    assert other.refresh()[record.key].seconds == other.read(record.key).seconds == 77.0
    (store.folder(record.key) / "run.json").unlink()
    assert other.read(record.key) is None


def test_a_pickled_store_reads_for_itself(tmp_path):
    store = open_store(tmp_path)
    store.write(some_record())
    store.refresh()
    data = pickle.dumps(store)
    assert b"blocks.0.attn" not in data
    assert pickle.loads(data).refresh() == store.refresh()


def test_a_run_stands_for_itself(tmp_path):
    store = RunStore(tmp_path, dataclasses.replace(PLAN, baselines={"majority": 0.1}), title="Title")
    store.write(some_record())
    values = json.loads((store.folder(some_record().key) / "run.json").read_text(), parse_constant=pytest.fail)
    assert values["format"] == 1
    assert values["comparison"] == {
        "title": "Title",
        "metric": "accuracy",
        "higher_is_better": True,
        "baselines": {"majority": 0.1},
    }


def test_a_folder_with_other_files_may_be_used(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    assert open_store(tmp_path).refresh() == {}


@pytest.mark.parametrize(
    "other",
    [
        Plan(arms=ARMS, seeds=(1,), learning_rates=(1e-3,)),
        Plan(arms=ARMS, seeds=(0,), learning_rates=(1e-2,)),
        Plan(arms=ARMS, seeds=(0,), learning_rates=(1e-3,), settings={"steps": 5}),
        Plan(arms=ARMS, seeds=(0,), learning_rates=(1e-3,), metric="f1"),
    ],
)
def test_resuming_another_comparison_is_refused(tmp_path, other):
    open_store(tmp_path).write(some_record())
    with pytest.raises(FileExistsError, match="another comparison"):
        open_store(tmp_path, other, resume=True)


def test_runs_whose_options_also_selected_attention_are_resumed(tmp_path):
    record = next(r for r in make_all() if r.key.arm == "row-stopgrad")
    open_store(tmp_path).write(record)
    (path,) = (tmp_path / "runs").glob("*/run.json")
    values = json.loads(path.read_text())
    values["description"]["config"] = FORMER
    path.write_text(json.dumps(values))
    assert open_store(tmp_path, resume=True).refresh() == {record.key: record}
    values["description"]["config"] = FORMER | {"channel": False}
    path.write_text(json.dumps(values))
    with pytest.raises(FileExistsError, match="another comparison"):
        open_store(tmp_path, resume=True)


def test_seeds_and_rates_may_be_added(tmp_path):
    open_store(tmp_path).write(some_record())
    more = Plan(arms=ARMS, seeds=(0, 1), learning_rates=(1e-4, 1e-3))
    assert list(open_store(tmp_path, more, resume=True).refresh()) == [some_record().key]


EARLIER = {
    "description": {
        "arm": "row-stop",
        "seed": 0,
        "learning_rate": 0.001,
        "config": FORMER,
        "metric": "accuracy",
        "settings": {},
    },
    "status": "finished",
    "reason": None,
    "traceback": None,
    "weights": ["ab"],
    "random_states": ["cd"],
    "seconds": 1.5,
    "metrics": {
        "validation": 0.5,
        "test": 0.25,
        "losses": [1.0],
        "seconds_per_step": 0.01,
        "evaluations": [],
        "conditioning": [
            {
                "layer": "blocks.0.attn",
                "moment": "initialisation",
                "kappa_before": "inf",
                "kappa_after": 2.0,
                "spread_before": 0.5,
                "spread_after": 0.0,
            }
        ],
        "extra": {},
        "pictures": {},
    },
}


def write_earlier(folder: Path, **changes: object) -> None:
    (folder / "runs").mkdir()
    (folder / "runs" / "row-stop-seed0-lr0.001.json").write_text(json.dumps(EARLIER | changes))


def test_an_earlier_comparison_resumes_under_the_present_names_of_its_arms(tmp_path):
    write_earlier(tmp_path)
    (record,) = open_store(tmp_path, resume=True).refresh().values()
    assert record.key == RunKey(0, 1e-3, "row-stopgrad")
    assert record.description == PLAN.describe(record.key)
    assert record.metrics.test == 0.25
    assert [row["moment"] for row in record.metrics.conditioning] == ["initialization"]


def test_settings_of_an_earlier_comparison_are_brought_up_to_date(tmp_path):
    settings = {"task": "masked-lm", "task_options": {"corpus": "tokenised"}}
    write_earlier(tmp_path, description=EARLIER["description"] | {"settings": settings})
    plan = dataclasses.replace(
        PLAN, settings={"task": "masked-lm", "task_options": {"corpus": "tokenized"}, "eps": 1e-12}
    )
    assert list(open_store(tmp_path, plan, resume=True).refresh()) == [RunKey(0, 1e-3, "row-stopgrad")]
    other = dataclasses.replace(plan, settings=plan.settings | {"eps": 1e-8})
    with pytest.raises(FileExistsError, match="another comparison"):
        open_store(tmp_path, other, resume=True)
    (tmp_path / "comparison.json").unlink()
    with pytest.raises(FileExistsError, match="another comparison"):
        open_store(tmp_path, other, resume=True)
    same = dataclasses.replace(PLAN, settings=settings)
    assert list(open_store(tmp_path, same, resume=True).refresh()) == [RunKey(0, 1e-3, "row-stopgrad")]


def test_a_plan_may_use_a_former_name(tmp_path):
    write_earlier(tmp_path)
    plan = Plan(
        arms={"plain": None, "row-stop": Arm(PreconditionConfig(gradient="stop"))}, seeds=(0,), learning_rates=(1e-3,)
    )
    assert list(open_store(tmp_path, plan, resume=True).refresh()) == [RunKey(0, 1e-3, "row-stop")]


def test_a_former_name_does_not_excuse_other_options(tmp_path):
    write_earlier(tmp_path, description=EARLIER["description"] | {"config": {"gradient": "full"}})
    with pytest.raises(FileExistsError, match="another comparison"):
        open_store(tmp_path, resume=True)


def test_a_run_that_failed_under_a_former_name_and_was_repeated_is_the_new_one(tmp_path):
    write_earlier(tmp_path, status="failed", reason="no memory", metrics=None)
    store = open_store(tmp_path, resume=True)
    (failed,) = store.refresh().values()
    store.write(
        dataclasses.replace(
            failed, status="finished", reason=None, metrics=some_record().metrics, weights=["ab"], seconds=7.0
        )
    )
    (record,) = open_store(tmp_path, resume=True).refresh().values()
    assert (record.status, record.seconds) == ("finished", 7.0)


def test_resume_and_overwrite_exclude_each_other(tmp_path):
    with pytest.raises(ValueError, match="give one of them"):
        open_store(tmp_path, resume=True, overwrite=True)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"description": {}}'])
def test_a_file_that_is_no_run_is_named(tmp_path, content):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "plain-seed0-lr0.001.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"plain-seed0-lr0\.001\.json"):
        open_store(tmp_path, resume=True)


def test_a_folder_that_cannot_be_written_to_is_an_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="output: cannot write to this folder"):
        open_store(tmp_path / "file" / "below")


def test_a_killed_write_leaves_no_run(tmp_path, monkeypatch):
    store = open_store(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        store.write(some_record())
    monkeypatch.undo()
    assert store.refresh() == {}
    assert open_store(tmp_path, resume=True).refresh() == {}
