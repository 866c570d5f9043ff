import copy
import pickle
import threading

import pytest
import torch
from torch import Tensor, nn

from preconditioned_attention import PreconditionConfig
from preconditioned_attention.layers import Preconditioner
from preconditioned_attention.layers.call_record import (
    CallRecord,
    any_traced,
    enter_traced_attention,
    leave_traced_attention,
    record_traced_call,
)


def test_a_call_is_seen_after_it_is_expected() -> None:
    calls = CallRecord()
    assert not calls.seen()
    calls.add()
    assert calls.seen()
    calls.expect()
    assert not calls.seen()


def test_both_ways_to_call_a_preconditioner_are_recorded() -> None:
    c = Preconditioner(PreconditionConfig())
    c.calls = CallRecord()
    rows = torch.randn(1, 2, 3, 4)
    for call in (lambda: c(rows), lambda: c.attend(rows, rows, rows)):
        c.calls.expect()
        call()
        assert c.calls.seen()


def test_copies_start_anew() -> None:
    calls = CallRecord()
    calls.add()
    assert not copy.deepcopy(calls).seen()
    assert not pickle.loads(pickle.dumps(calls)).seen()


def test_threads_do_not_see_each_other() -> None:
    """Two threads may run one model at once, as servers do."""
    calls = CallRecord()
    calls.add()
    seen = []

    def other() -> None:
        seen.append(calls.seen())
        calls.expect()

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == [False]
    assert calls.seen()


class Attention(nn.Module):
    def __init__(self, calls: bool) -> None:
        super().__init__()
        self.calls = calls

    def forward(self, x: Tensor) -> Tensor:
        enter_traced_attention()
        if self.calls:
            record_traced_call()
        leave_traced_attention("nothing was called")
        return x + 1


def test_a_trace_looks_once_and_leaves_nothing_behind() -> None:
    torch.compiler.reset()
    x = torch.randn(3)
    assert torch.equal(torch.compile(Attention(True), backend="eager", fullgraph=True)(x), x + 1)
    assert any_traced()
    with pytest.raises(RuntimeError, match="nothing was called"):
        torch.compile(Attention(False), backend="eager", fullgraph=True)(x)


def test_a_part_of_an_attention_says_nothing() -> None:
    """A piece between graph breaks leaves an attention that the trace has not entered."""

    def leave(x: Tensor) -> Tensor:
        leave_traced_attention("nothing was called")
        return x + 1

    torch.compiler.reset()
    assert torch.compile(leave, backend="eager", fullgraph=True)(torch.zeros(1)) == 1
