import threading
import time

from preconditioned_attention.lab.comparison.scheduling import in_process
from preconditioned_attention.lab.comparison.scheduling.in_process import do_runs
from preconditioned_attention.lab.training.claim import CLAIM, RunClaim
from tests.helpers.scheduled_runs import begin, log, logged


def test_every_run_once_in_the_plans_order(tmp_path):
    job = begin(logged, tmp_path)
    keys = list(job.plan.run_keys())
    do_runs(job, keys)
    do_runs(job, keys)
    assert [line["stem"] for line in log(tmp_path)] == [key.stem for key in keys]
    assert all(job.record(key).finished for key in keys)


def test_a_failed_run_is_not_repeated(tmp_path):
    calls = []

    def fails(prepare, seed, learning_rate):
        calls.append(seed)
        raise LookupError("no such data")

    job = begin(fails, tmp_path, seeds=(0,), learning_rates=(1.0,))
    do_runs(job, list(job.plan.run_keys()))
    assert len(calls) == 3


def test_a_run_of_another_process_is_passed_over_and_taken_when_it_is_free(tmp_path, monkeypatch):
    monkeypatch.setattr(in_process, "POLL_SECONDS", 0.05)
    job = begin(logged, tmp_path)
    keys = list(job.plan.run_keys())[:4]
    # A claim of another host that lives: it is touched, and goes away only when its process ends.
    other = job.store.folder(keys[0]) / CLAIM
    RunClaim(other.parent)  # makes the folder
    alive = threading.Event()
    write_claim_of_another_host(other)
    toucher = threading.Thread(target=touch_until, args=(other, alive))
    toucher.start()
    worker = threading.Thread(target=do_runs, args=(job, keys))
    worker.start()
    try:
        wait_for(lambda: len(log(tmp_path)) == 3)
        assert [line["stem"] for line in log(tmp_path)] == [key.stem for key in keys[1:]]
        assert worker.is_alive()
    finally:
        alive.set()
        toucher.join(10)
        other.unlink()
        worker.join(20)
    assert log(tmp_path)[-1]["stem"] == keys[0].stem
    assert not worker.is_alive()


def write_claim_of_another_host(path):
    claim = RunClaim(path.parent)
    claim.acquire()
    text = path.read_text()
    claim.release()
    import socket

    assert socket.gethostname() in text
    path.write_text(text.replace(socket.gethostname(), "elsewhere"))


def touch_until(path, event):
    while not event.wait(0.1):
        path.touch()


def wait_for(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
