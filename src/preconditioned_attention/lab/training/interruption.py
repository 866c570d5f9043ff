"""Signals that ask a run to stop, and the processes' agreement on when."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

import torch

from ..tasks import Batch
from .claim import ClaimLostError
from .errors import Interrupted

if TYPE_CHECKING:
    from accelerate import Accelerator

BEFORE = "came before the first step; there was nothing to save"
STOPPING = "\nstopping: the state is saved after this micro-batch (Ctrl-C again stops at once)\n"

FORWARDED_SECONDS = 1.0
"""A second Ctrl-C this soon is the first: a terminal sends it to every process, and some wrappers pass it on."""


class StopRequested(Exception):
    """The processes of a run have agreed to stop here, because one of them was sent the signal ``number``."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def name(self) -> str:
        """The signal's name."""
        return signal.Signals(self.number).name


class StopSignals:
    """A context manager in which SIGINT (Ctrl-C) and SIGTERM ask the run to stop; the handlers are restored on exit.

    Until :meth:`defer` is called there is no state to save, and the first signal raises :class:`Interrupted` at once.
    From then on it is remembered, and a :class:`StopCheck` acts on it. Ctrl-C after that raises ``KeyboardInterrupt``
    at once; a launcher may send SIGTERM several times, so that it does not.

    Outside the main thread, and for signals that the program ignores, nothing is changed.
    """

    def __init__(self) -> None:
        self.number = 0
        self._since = 0.0
        self._deferred = False
        self._process = os.getpid()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                previous = signal.getsignal(number)
                if previous is not None and previous != signal.SIG_IGN:
                    self._previous[number] = previous
                    signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        if self.number and kind is None:
            raise _interrupted(self.number, "came when the run had finished; nothing of it is lost")

    def defer(self) -> None:
        """From now on there is a state to save. Raises :class:`Interrupted` if a signal came before."""
        self._deferred = True
        if self.number:  # its exception was swallowed, as in the callback of a weak reference
            raise _interrupted(self.number, BEFORE)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a process that was forked meanwhile
            signal.signal(number, self._previous[number])
            signal.raise_signal(number)
        elif not self.number:
            self.number, self._since = number, time.monotonic()
            if not self._deferred:
                self._stop_at_once(number, frame)
            _tell(STOPPING)
        elif number == signal.SIGINT and time.monotonic() - self._since > FORWARDED_SECONDS:
            raise KeyboardInterrupt

    def _stop_at_once(self, number: int, frame: FrameType | None) -> None:
        if callable(self._previous[number]):  # the command's own handler knows of imports
            with contextlib.suppress(KeyboardInterrupt):
                self._previous[number](number, frame)
        raise _interrupted(number, BEFORE)


class StopCheck:
    """Call it at the same places on every process: raises on all of them if a signal came on one.

    Args:
        signals: of this process.
        accelerator: connects the processes.
        claim: raises if another process has taken the run over; called on the main process.
    """

    def __init__(self, signals: StopSignals, accelerator: Accelerator, claim: Callable[[], None]) -> None:
        self._signals = signals
        self._accelerator = accelerator
        self._claim = claim

    def __call__(self) -> None:
        """Raises:
        StopRequested: stop, and save the state.
        ClaimLostError: stop, and write nothing.
        """
        lost = self._claim_lost()
        number = self._signals.number
        if self._accelerator.num_processes > 1:
            own = torch.tensor([[number, lost is not None]], device=self._accelerator.device)
            number, any_lost = self._accelerator.gather(own).amax(dim=0).tolist()
            if any_lost and lost is None:
                lost = ClaimLostError(
                    "another process has taken this run over; it has stopped and written nothing since"
                )
        if lost is not None:
            raise lost
        if number:
            raise StopRequested(number)

    def _claim_lost(self) -> ClaimLostError | None:
        try:
            self._claim()
        except ClaimLostError as error:
            return error
        return None


def _interrupted(number: int, when: str) -> Interrupted:
    return Interrupted(f"{signal.Signals(number).name} {when}", number)


def stoppable(batches: Iterator[Batch], check: Callable[[], None]) -> Iterator[Batch]:
    """The batches; ``check`` is called for each of them, after it was loaded."""
    for batch in batches:
        check()
        yield batch


def ignore_signals(worker: int = 0) -> None:
    """For a process that loads data: its parent gets the same signals, and ends it when the state is saved."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _ignore_once)


def _ignore_once(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # whoever sends it again means this process


def _tell(text: str) -> None:
    """Write to standard error as a handler may: its stream could be in the middle of a write."""
    if os.environ.get("RANK", "0") == "0":
        with contextlib.suppress(OSError):
            os.write(2, text.encode())
