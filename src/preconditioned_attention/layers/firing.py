"""Whether a preconditioner was called: it notes its calls, and who expects one asks.

In eager code every preconditioner has a :class:`Firing` of its own. While torch.compile traces, nothing of a module may
be written (inside activation checkpointing the compiler would refuse) and no module may be told from another (layers
share compiled code), so there the calls that are being traced are counted in one place, at trace time only: compiled
code holds nothing of it.
"""

from __future__ import annotations

import threading

from torch._guards import CompileContext

from .._compiler import assume_constant_result


class Firing:
    """The threads in which a preconditioner was called since a call was last expected there; and whether it ever was.

    A copy, by pickling too, starts anew; replicas that share their module's attributes share it.
    """

    __slots__ = ("_threads", "ever")

    def __init__(self) -> None:
        self._threads: set[int] = set()
        self.ever = False

    def __reduce__(self) -> tuple[type[Firing], tuple[()]]:
        return Firing, ()

    def expect(self) -> None:
        """Forget this thread's calls."""
        self._threads.discard(threading.get_ident())

    def note(self) -> None:
        """A call in this thread."""
        self.ever = True
        self._threads.add(threading.get_ident())

    def seen(self) -> bool:
        """Whether there was a call in this thread since the last :meth:`expect`."""
        return threading.get_ident() in self._threads


class _Tracing:
    """The attention calls inside which the present trace is, and whether each has reached a preconditioner."""

    def __init__(self) -> None:
        self.trace: object = None
        self.calls: list[bool] = []
        self.any = False  # whether any preconditioner was ever traced in this process

    def current(self) -> list[bool]:
        """The calls of the present trace: what an abandoned one has left is forgotten."""
        trace = CompileContext.current_trace_id()
        if trace is None or trace != self.trace:
            self.trace, self.calls = trace, []
        return self.calls


_tracing = _Tracing()


@assume_constant_result
def expect_traced() -> bool:
    """The trace enters an attention."""
    _tracing.current().append(False)
    return True


@assume_constant_result
def note_traced() -> bool:
    """The trace reaches a preconditioner."""
    calls = _tracing.current()
    calls[-1:] = [True] * len(calls[-1:])
    _tracing.any = True
    return True


@assume_constant_result
def require_traced(message: str) -> bool:
    """The trace leaves an attention; raises ``message`` if no preconditioner was reached in it.

    An attention that is traced in pieces (a graph break inside it) says nothing: the eager code around the pieces does.
    """
    calls = _tracing.current()
    if calls and not calls.pop():
        raise RuntimeError(message)
    return True


@assume_constant_result
def raise_traced(message: str) -> bool:
    """Raise out of the compiler, which would take an error of the code that it traces for a reason to run that code."""
    raise RuntimeError(message)


def any_traced() -> bool:
    """Whether compiled code of this process may hold a preconditioner."""
    return _tracing.any
