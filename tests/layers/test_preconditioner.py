import copy
import io
import warnings

import pytest
import torch
import torch.nn.functional as F

from preconditioned_attention import PreconditionConfig, equilibrate, preconditioned_attention
from preconditioned_attention.config import BACKENDS
from preconditioned_attention.layers import Preconditioner

MARKER = "requires_preconditioned_attention"


def test_applies_the_function_with_its_options() -> None:
    config = PreconditionConfig(gradient="stop", gain=0.5, eps=0.1)
    c = Preconditioner(config, num_heads=3, dtype=torch.float64)
    rows = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    assert torch.equal(c(rows), equilibrate(rows, gradient="stop", eps=0.1, gain=c.gain))
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    expected = preconditioned_attention(rows, rows, rows, mask, scale=0.3, gradient="stop", eps=0.1, gain=c.gain)
    assert torch.equal(c.attend(rows, rows, rows, mask, scale=0.3), expected)


def test_observers_see_both_sides_and_change_nothing() -> None:
    c = Preconditioner(PreconditionConfig())
    q = torch.randn(2, 3, 5, 4)
    unobserved = c.attend(q, q, q, is_causal=True)
    seen = []
    c.observers.append(lambda before, after: seen.append((before, after)))
    observed = c.attend(q, q, q, is_causal=True)
    assert torch.equal(observed, unobserved)
    ((before, after),) = seen
    assert torch.equal(before, F.scaled_dot_product_attention(q, q, q, is_causal=True))
    assert torch.equal(after, observed)


def test_observed_dropout_draws_once() -> None:
    c, seen, q = Preconditioner(PreconditionConfig()), [], torch.randn(2, 3, 5, 4)
    torch.manual_seed(7)
    unobserved, state = c.attend(q, q, q, dropout_p=0.4), torch.get_rng_state()
    c.observers.append(lambda before, after: seen.append((before, after)))
    torch.manual_seed(7)
    assert torch.equal(c.attend(q, q, q, dropout_p=0.4), unobserved)
    assert torch.equal(torch.get_rng_state(), state)
    ((before, after),) = seen
    torch.testing.assert_close(c(before), after)  # A with the very weights that were dropped


def test_score_observers_see_queries_and_keys_first() -> None:
    c, seen, q, k = Preconditioner(PreconditionConfig()), [], torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4)
    c.score_observers.append(seen.append)
    c.attend(q, k, k, is_causal=True)
    assert seen == [], "nobody observes the rows"
    c.observers.append(lambda before, after: seen.append(None))
    c.attend(q, k, k, is_causal=True)
    scores, last = seen
    assert (scores.q is q, scores.k is k, scores.is_causal, last) == (True, True, True, None)


def test_state_dict_holds_the_mark_and_the_gain_only_when_asked() -> None:
    assert set(Preconditioner(PreconditionConfig()).state_dict()) == {MARKER}
    assert set(Preconditioner(PreconditionConfig(), marker=False).state_dict()) == set()
    with_gain = Preconditioner(PreconditionConfig(gain=0.3), num_heads=4)
    assert set(with_gain.state_dict()) == {MARKER, "gain"}
    assert with_gain.gain is not None
    assert with_gain.gain.tolist() == pytest.approx([0.3] * 4)


def test_the_mark_survives_a_change_of_dtype() -> None:
    assert Preconditioner(PreconditionConfig()).half().state_dict()[MARKER].dtype == torch.int64


def test_gain_needs_a_number_of_heads() -> None:
    with pytest.raises(ValueError, match="num_heads must be given"):
        Preconditioner(PreconditionConfig(gain=1.0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_that_computes_attention_cannot_serve_rows(backend: str) -> None:
    rows, c = torch.randn(2, 3, 5, 4), Preconditioner(PreconditionConfig(backend=backend))
    if backend in ("auto", "composition"):
        assert torch.equal(c(rows), equilibrate(rows))
    else:
        with pytest.raises(ValueError, match=f"backend='{backend}' computes attention"):
            c(rows)


def test_a_plain_checkpoint_warns() -> None:
    with pytest.warns(UserWarning, match="does not say that it was trained with preconditioned attention"):
        Preconditioner(PreconditionConfig()).load_state_dict({})


def test_its_own_checkpoint_loads_silently_and_stays_usable() -> None:
    c = Preconditioner(PreconditionConfig(gain=0.5), num_heads=2)
    state = c.state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            c.load_state_dict(state)
    assert MARKER in state


def test_another_gradient_warns_another_placement_or_version_stops() -> None:
    state = Preconditioner(PreconditionConfig(gradient="stop")).state_dict()
    c = Preconditioner(PreconditionConfig())
    with pytest.warns(UserWarning, match="gradient='stop' and the model has 'full'"):
        c.load_state_dict(state)
    assert c.state_dict()[MARKER].tolist() == Preconditioner(PreconditionConfig()).state_dict()[MARKER].tolist()
    with pytest.raises(RuntimeError, match="trained with placement='post_skip' and the model has 'pre_skip'"):
        c.load_state_dict(Preconditioner(PreconditionConfig(placement="post_skip")).state_dict())
    with pytest.raises(RuntimeError, match="of another version"):
        c.load_state_dict({MARKER: torch.tensor([99, 0, 0])})


def test_copies_and_pickles() -> None:
    c = Preconditioner(PreconditionConfig(gain=0.5), num_heads=2)
    buffer = io.BytesIO()
    torch.save(c, buffer)
    buffer.seek(0)
    rows = torch.randn(2, 3, 4)
    for other in (copy.deepcopy(c), torch.load(buffer, weights_only=False)):
        assert torch.equal(other(rows), c(rows))
        assert other.config == c.config
