import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from preconditioned_attention.lab.comparison import FairnessError, compare
from preconditioned_attention.lab.comparison.scheduling import processes
from preconditioned_attention.lab.comparison.scheduling.processes import describe_end, run_in_processes
from tests.helpers import breaks_on_import
from tests.helpers.comparison_results import results_without_times
from tests.helpers.scheduled_runs import PLAN, begin, killed_always, killed_once, log, logged, unfair


def run_on_two(job):
    """Do all runs of ``job``, and return what was told."""
    lines = []
    run_in_processes(job, list(job.plan.run_keys()), workers=2, note=lines.append)
    return lines


def test_two_workers_share_the_runs_and_the_results_are_those_of_one(tmp_path):
    comparisons = [
        compare(logged, output=tmp_path / str(workers), workers=workers, verbose=False, **PLAN) for workers in (1, 2)
    ]
    assert comparisons[0].summaries["plain"].test == comparisons[1].summaries["plain"].test
    assert results_without_times(tmp_path / "1") == results_without_times(tmp_path / "2")
    lines = log(tmp_path / "2")
    assert len({line["stem"] for line in lines}) == len(lines) == 12
    assert len({line["process"] for line in lines}) == 2
    assert os.getsid(0) not in {line["session"] for line in lines}  # no Ctrl-C of this terminal reaches them
    assert {line["threads"] for line in lines} == {1}


def test_a_worker_that_is_killed_is_replaced_and_its_run_is_taken_over(tmp_path):
    lines = run_on_two(begin(killed_once, tmp_path))
    assert len(lines) == 1
    assert "was killed by SIGKILL while it did run row-seed0-lr0.0001" in lines[0]
    begun = [line["stem"] for line in log(tmp_path)]
    assert len(begun) == 13
    assert begun.count("row-seed0-lr0.0001") == 2


@pytest.mark.slow
def test_a_run_that_kills_its_process_every_time_has_failed_and_the_others_finish(tmp_path):
    job = begin(killed_always, tmp_path)
    assert len(run_on_two(job)) == processes.MOST_DEATHS
    failed = [key.stem for key in job.plan.run_keys() if not job.record(key).finished]
    assert failed == ["row-seed0-lr0.0001"]
    record = json.loads((tmp_path / "runs" / failed[0] / "run.json").read_text())
    assert record["reason"] == "its process was killed by SIGSEGV, 3 times"


def test_an_error_that_concerns_the_comparison_stops_all_workers_and_is_raised(tmp_path, monkeypatch):
    stop, seconds = processes._Pool.__exit__, []

    def timed(pool, *error):
        begun = time.monotonic()
        stop(pool, *error)
        seconds.append(time.monotonic() - begun)

    monkeypatch.setattr(processes._Pool, "__exit__", timed)
    with pytest.raises(FairnessError, match="had different initial weights") as caught:
        run_on_two(begin(unfair, tmp_path))
    assert "do_run" in str(caught.value.__cause__)  # the worker's traceback
    begun = {line["process"] for line in log(tmp_path)}
    assert 2 <= len(log(tmp_path)) < 12
    assert not [process for process in begun if is_alive(process)]
    assert seconds[0] < processes.GRACE_SECONDS / 2


def is_alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_worker_that_cannot_import_the_function_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_IMPORTED_BY", os.environ["TEST_IMPORTED_BY"])
    with pytest.raises(ImportError, match="the data of this module are on another machine"):
        run_on_two(begin(breaks_on_import.run, tmp_path))


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_and_nothing_is_removed(tmp_path):
    script = tmp_path / "script.py"
    call = f"compare(logged, output={str(tmp_path / 'out')!r}, workers=2, overwrite=True, **PLAN)"
    lines = [
        "from preconditioned_attention.lab.comparison import compare",
        f"from {logged.__module__} import PLAN, logged",
    ]
    script.write_text("\n".join([*lines, call]))
    compare(logged, output=tmp_path / "out", verbose=False, **PLAN)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, script], env=environment, text=True, capture_output=True, timeout=200, check=False
    )
    assert done.returncode == 1
    assert "call it under `if __name__" in done.stderr
    assert (
        done.stderr.strip().splitlines()[-1].startswith("RuntimeError: a worker process ended with exit code 1 before")
    )


def test_a_function_that_cannot_be_sent_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"run cannot be sent to other processes .* or give workers=1"):
        run_on_two(begin(lambda prepare, seed, rate: None, tmp_path))


def test_a_worker_that_dies_before_its_first_run_is_not_started_again(tmp_path, monkeypatch):
    started = itertools.count()

    def ends_at_once(*arguments):
        next(started)
        return real(*arguments)

    real = processes._environment
    monkeypatch.setattr(processes, "_environment", ends_at_once)
    monkeypatch.setattr(processes, "work", os._exit)
    with pytest.raises(RuntimeError, match="a worker process ended with exit code 1 before its first run"):
        run_on_two(begin(logged, tmp_path))
    assert next(started) == 2


def test_workers_that_are_still_importing_end_at_once(tmp_path):
    job = begin(logged, tmp_path)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_on_two(job)
    assert time.monotonic() - begun < processes.GRACE_SECONDS
    assert log(tmp_path) == []


def test_each_worker_gets_a_gpu(monkeypatch):
    monkeypatch.setattr(processes, "gpu_count", lambda: 2)
    monkeypatch.setattr(processes, "core_count", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    seen = []
    for number in (0, 1, 2):
        with processes._environment(number):
            seen.append((os.environ["CUDA_VISIBLE_DEVICES"], os.environ["MKL_NUM_THREADS"]))
    assert seen == [("4", "4"), ("6", "4"), ("4", "4")]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,6"
    assert "MKL_NUM_THREADS" not in os.environ


def test_ends_are_described():
    assert [describe_end(code) for code in (1, -signal.SIGKILL, -64)] == [
        "ended with exit code 1",
        "was killed by SIGKILL",
        "was killed by SIGRTMAX",
    ]
