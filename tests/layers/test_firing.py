import copy
import pickle
import threading

import pytest
import torch
from torch import Tensor, nn

from preconditioned_attention import PreconditionConfig
from preconditioned_attention.layers import Preconditioner
from preconditioned_attention.layers.firing import Firing, any_traced, expect_traced, note_traced, require_traced


def test_a_call_is_seen_after_it_is_expected() -> None:
    firing = Firing()
    assert not firing.seen()
    firing.note()
    assert firing.seen()
    firing.expect()
    assert not firing.seen()


def test_both_ways_to_call_a_preconditioner_are_noted() -> None:
    c = Preconditioner(PreconditionConfig())
    rows = torch.randn(1, 2, 3, 4)
    for call in (lambda: c(rows), lambda: c.attend(rows, rows, rows)):
        c.firing.expect()
        call()
        assert c.firing.seen()


def test_copies_start_anew() -> None:
    firing = Firing()
    firing.note()
    assert not copy.deepcopy(firing).seen()
    assert not pickle.loads(pickle.dumps(firing)).seen()


def test_threads_do_not_see_each_other() -> None:
    """Two threads may run one model at once, as servers do."""
    firing = Firing()
    firing.note()
    seen = []

    def other() -> None:
        seen.append(firing.seen())
        firing.expect()

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == [False]
    assert firing.seen()


class Attention(nn.Module):
    def __init__(self, calls: bool) -> None:
        super().__init__()
        self.calls = calls

    def forward(self, x: Tensor) -> Tensor:
        expect_traced()
        if self.calls:
            note_traced()
        require_traced("nothing was called")
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
        require_traced("nothing was called")
        return x + 1

    torch.compiler.reset()
    assert torch.compile(leave, backend="eager", fullgraph=True)(torch.zeros(1)) == 1
