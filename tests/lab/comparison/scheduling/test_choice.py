import signal

import pytest

from preconditioned_attention.cli import main
from preconditioned_attention.lab.comparison.scheduling.choice import choose_count, do_all
from preconditioned_attention.lab.training.errors import Interrupted
from tests.helpers.scheduled_runs import begin
from tests.helpers.synthetic_runs import run

TORCHRUN = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(("workers", "count"), [(1, 1), (2, 2)])
def test_workers_of_this_machine(workers, count):
    assert choose_count(workers, None) == count


@pytest.mark.parametrize("address", [None, "auto"])
def test_other_ways_need_no_workers(monkeypatch, address):
    if address is None:
        for name, value in TORCHRUN.items():
            monkeypatch.setenv(name, value)
    assert [choose_count(workers, address) for workers in (None, 1)] == [1, 1]


def test_two_ways_at_once_are_refused(monkeypatch):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    for workers, address in [(2, None), (1, "auto"), (2, "auto")]:
        with pytest.raises(ValueError, match="exclude each other"):
            choose_count(workers, address)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--workers", "0"], "workers must be at least 1; got 0"),
        (["--workers", "-1"], "workers must be at least 1; got -1"),
        (["--workers", "1000000"], "workers must be at most "),
        (["--slice", "0/3"], "slice must be a number from 1 to n"),
        (["--slice", "4/3"], "got 4/3"),
        (["--slice", "a/b"], "got 'a/b'"),
        (["--slice", "1/0"], "got 1/0"),
    ],
)
def test_mistakes_are_told_in_one_line_before_anything_is_written(tmp_path, capsys, arguments, words):
    assert main(["compare", "digits", "--output", str(tmp_path / "out"), *arguments]) == 2
    shown = capsys.readouterr().err
    assert words in shown
    assert shown.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_says_how_much_is_done(tmp_path, number):
    def interrupted(prepare, seed, learning_rate):
        if seed == 1:
            signal.raise_signal(number)
        return run(prepare, seed, learning_rate)

    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    job = begin(interrupted, tmp_path)
    with pytest.raises(Interrupted, match="stopped with 6 of 12 runs done") as caught:
        do_all(job, list(job.plan.run_keys()), workers=1, ray_address=None, verbose=False)
    assert caught.value.exit_code == 128 + number
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert not list(tmp_path.rglob(".claim"))
