import signal

import pytest

from preconditioned_attention.lab.data.worker_pool import worker_pool


def blocked_signals(number: int) -> tuple[int, set[int]]:
    return number, set(signal.pthread_sigmask(signal.SIG_BLOCK, ()))


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order(workers: int) -> None:
    with worker_pool(workers) as run:
        assert [number for number, _ in run(blocked_signals, range(5))] == list(range(5))


def test_workers_never_see_an_interrupt_and_this_process_does() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with worker_pool(2) as run:
        assert all(signal.SIGINT in blocked for _, blocked in run(blocked_signals, range(4)))
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


@pytest.mark.parametrize("workers", [0, -1, 10**6, True, 2.0])
def test_a_number_that_cannot_be_meant(workers: object) -> None:
    with pytest.raises((ValueError, TypeError), match="workers must be"), worker_pool(workers):  # type: ignore[arg-type]
        pass
