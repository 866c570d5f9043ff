import json

import pytest

from preconditioned_attention.lab.comparison.job import do_run
from preconditioned_attention.lab.comparison.scheduling import progress
from preconditioned_attention.lab.comparison.scheduling.progress import ProgressView, format_seconds, last_step
from preconditioned_attention.lab.training.claim import RunClaim
from tests.helpers.scheduled_runs import begin
from tests.helpers.synthetic_runs import run


def fails_on_seed_one(prepare, seed, learning_rate):
    if seed == 1:
        raise LookupError("no such data")
    return run(prepare, seed, learning_rate)


def test_ended_runs_are_told_in_lines(tmp_path, capsys):
    job = begin(fails_on_seed_one, tmp_path)
    keys = list(job.plan.run_keys())
    do_run(job, keys[0])
    view = ProgressView(job, keys, enabled=True)
    with view:
        for key in keys[1:]:
            do_run(job, key)
    shown = capsys.readouterr().err
    assert shown.count(" ended. ") == 1
    assert "12 of 12 runs have ended, 6 failed, " in shown
    assert view.left == []


def test_nothing_is_shown_unasked(tmp_path, capsys):
    job = begin(run, tmp_path, seeds=(0,))
    with ProgressView(job, list(job.plan.run_keys()), enabled=False) as view:
        view.note("a line")
    assert capsys.readouterr().err == ""


def test_active_runs_with_step_and_owner(tmp_path):
    job = begin(run, tmp_path, seeds=(0,))
    keys = list(job.plan.run_keys())
    view = ProgressView(job, keys, enabled=False)
    folders = [job.store.folder(key) for key in keys[:2]]
    claims = [RunClaim(folder) for folder in folders]
    for claim in claims:
        claim.acquire()
    (folders[0] / "config.yaml").write_text("steps: 40\n")
    (folders[0] / "metrics.jsonl").write_text('{"kind": "step", "step": 7}\n{"kind": "ev')
    active = [view._active(key) for key in keys]
    owner = claims[0].owner()
    assert [run and run.format() for run in active] == [
        f"  {keys[0].stem}  step 7/40  process {owner}",
        f"  {keys[1].stem}  running  process {owner}",
        *[None] * (len(keys) - 2),
    ]
    assert active[0].fraction == 7 / 40
    for claim in claims:
        claim.release()
    assert view._active(keys[0]) is None


def test_time_left_counts_what_was_done_since_the_start(tmp_path, monkeypatch):
    job = begin(run, tmp_path)
    keys = list(job.plan.run_keys())
    for key in keys[:6]:
        do_run(job, key)
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with ProgressView(job, keys, enabled=False) as view:
        view._look()
        now[0] += 90.0
        for key in keys[6:9]:
            do_run(job, key)
        view._look()
        assert view._summarize(9) == "9 of 12 runs have ended, 1 min 30 s elapsed, about 1 min 30 s left"


@pytest.mark.parametrize(
    ("text", "step"),
    [
        (None, 0),
        ("", 0),
        ('{"step": 3}', 0),
        ('{"step": 3}\n', 3),
        ('{"step": 3}\n{"step": 4}\n{"st', 4),
        ('{"step": 3}\n[4]\n', 0),
        ("garbage\n", 0),
        ("x" * 10_000 + "\n" + json.dumps({"step": 12, "loss": 1.0}) + "\n", 12),
    ],
)
def test_last_step_of_a_file(tmp_path, text, step):
    path = tmp_path / "metrics.jsonl"
    if text is not None:
        path.write_text(text)
    assert last_step(path) == step


def test_durations():
    assert [format_seconds(value) for value in (0.4, 59.6, 75, 3600, 90061)] == [
        "0 s",
        "1 min 00 s",
        "1 min 15 s",
        "1 h 00 min",
        "25 h 01 min",
    ]
