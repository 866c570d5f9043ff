"""Records of whether a preconditioner was called, in eager code and while torch.compile traces.

In eager code every guarded preconditioner has a :class:`CallRecord` of its own. Under torch.compile no attribute of a
module may be set (inside activation checkpointing Dynamo refuses that) and modules cannot be distinguished (layers
share compiled code). There the calls are recorded in one place per process, when they are traced; compiled code
contains nothing of it.
"""

from __future__ import annotations

import threading

from torch._guards import CompileContext

from .._compiler import assume_constant_result


class CallRecord:
    """The threads in which a preconditioner was called since they last called :meth:`expect`, and whether it ever was.

    A copy, also by pickling, is empty; the replicas of `DataParallel` share one.
    """

    __slots__ = ("_threads", "ever")

    def __init__(self) -> None:
        self._threads: set[int] = set()
        self.ever = False

    def __reduce__(self) -> tuple[type[CallRecord], tuple[()]]:
        return CallRecord, ()

    def expect(self) -> None:
        """Forget this thread's calls."""
        self._threads.discard(threading.get_ident())

    def add(self) -> None:
        """Record a call in this thread."""
        self.ever = True
        self._threads.add(threading.get_ident())

    def seen(self) -> bool:
        """Whether there was a call in this thread since the last :meth:`expect`."""
        return threading.get_ident() in self._threads


class _Tracing:
    """The attention calls that the present trace is inside of, and whether each has called a preconditioner."""

    def __init__(self) -> None:
        self.trace: object = None
        self.calls: list[bool] = []
        self.any = False  # whether any preconditioner was ever traced in this process

    def current(self) -> list[bool]:
        """The calls of the present trace; those of a trace that was abandoned are dropped."""
        trace = CompileContext.current_trace_id()
        if trace is None or trace != self.trace:
            self.trace, self.calls = trace, []
        return self.calls


_tracing = _Tracing()


@assume_constant_result
def enter_traced_attention() -> bool:
    """Record that the trace enters an attention."""
    _tracing.current().append(False)
    return True


@assume_constant_result
def record_traced_call() -> bool:
    """Record that the trace calls a preconditioner."""
    calls = _tracing.current()
    calls[-1:] = [True] * len(calls[-1:])
    _tracing.any = True
    return True


@assume_constant_result
def leave_traced_attention(message: str) -> bool:
    """Record that the trace leaves an attention; raise ``message`` if it called no preconditioner.

    Nothing is raised where an attention is traced in pieces (a graph break inside it): the eager hooks around the
    pieces check it.
    """
    calls = _tracing.current()
    if calls and not calls.pop():
        raise RuntimeError(message)
    return True


@assume_constant_result
def raise_while_tracing(message: str) -> bool:
    """Raise from Dynamo itself: after an error in the code that it traces, it would run that code eagerly."""
    raise RuntimeError(message)


def any_traced() -> bool:
    """Whether compiled code of this process may hold a preconditioner."""
    return _tracing.any
