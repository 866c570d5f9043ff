import copy
import io
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.optim.swa_utils import AveragedModel

from preconditioned_attention import PreconditionConfig, equilibrate, precondition_, preconditioned_attention
from preconditioned_attention.config import BACKENDS
from preconditioned_attention.layers import Preconditioner
from preconditioned_attention.layers.observation import (
    AttentionArguments,
    OutputObserver,
    RowObserver,
    attach_observer,
    observed,
)
from tests.helpers.dtensor_worker import connect, free_port

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
    attach_observer(c, RowObserver(lambda before, after: seen.append((before, after))))
    out = c.attend(q, q, q, is_causal=True)
    assert torch.equal(out, unobserved)
    ((before, after),) = seen
    assert torch.equal(before, F.scaled_dot_product_attention(q, q, q, is_causal=True))
    assert torch.equal(after, out)


def test_observed_dropout_draws_once() -> None:
    c, seen, q = Preconditioner(PreconditionConfig()), [], torch.randn(2, 3, 5, 4)
    torch.manual_seed(7)
    unobserved, state = c.attend(q, q, q, dropout_p=0.4), torch.get_rng_state()
    attach_observer(c, RowObserver(lambda before, after: seen.append((before, after))))
    torch.manual_seed(7)
    assert torch.equal(c.attend(q, q, q, dropout_p=0.4), unobserved)
    assert torch.equal(torch.get_rng_state(), state)
    ((before, after),) = seen
    torch.testing.assert_close(c(before), after)  # A with the very weights that were dropped


def test_observers_are_shown_the_arguments_first_and_several_are_shown_the_same() -> None:
    class Recorder:
        def __init__(self) -> None:
            self.seen: list[object] = []

        def before(self, arguments: AttentionArguments) -> None:
            self.seen.append(arguments)

        def after(self, rows: torch.Tensor | None, out: torch.Tensor) -> None:
            self.seen += [rows, out]

    c, q, k = Preconditioner(PreconditionConfig()), torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4)
    first, second = Recorder(), Recorder()
    with observed(c, first), observed(c, second):
        out = c.attend(q, k, k, is_causal=True)
        of_rows = c(q)
    c.attend(q, k, k)
    for recorder in (first, second):
        arguments, rows, result, given, scaled = recorder.seen
        assert (arguments.q is q, arguments.k is k, arguments.is_causal, rows) == (True, True, True, None)
        assert (result is out, given is q, scaled is of_rows) == (True, True, True)


def test_copies_are_not_observed() -> None:
    c, seen = Preconditioner(PreconditionConfig()), []
    attach_observer(c, OutputObserver(seen.append))
    copy.deepcopy(c)(torch.randn(2, 3, 4))
    assert not seen


def test_state_dict_holds_the_mark_and_the_gain_only_when_asked() -> None:
    assert set(Preconditioner(PreconditionConfig()).state_dict()) == {MARKER}
    assert set(Preconditioner(PreconditionConfig(), marker=False).state_dict()) == set()
    with_gain = Preconditioner(PreconditionConfig(gain=0.3), num_heads=4)
    assert set(with_gain.state_dict()) == {MARKER, "gain"}
    assert with_gain.gain is not None
    assert with_gain.gain.tolist() == pytest.approx([0.3] * 4)


def test_the_mark_survives_a_change_of_dtype() -> None:
    c = Preconditioner(PreconditionConfig(gradient="stop"), dtype=torch.float64)
    assert c.state_dict()[MARKER].dtype == torch.float64, "one dtype in the whole state dict"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for dtype in (torch.float16, torch.bfloat16):
            Preconditioner(PreconditionConfig(gradient="stop")).load_state_dict(c.to(dtype).state_dict())


ARITHMETIC = {
    "mean": lambda a, b: (a + b) / 2,
    "stack": lambda a, b: torch.stack([a, b]).mean(0),
    "integer division": lambda a, b: (a + b) // 2,
    "difference": lambda a, b: a - b,
    "task vector": lambda a, b: a + 0.3 * (b - a),
    "quotient of differences": lambda a, b: (a - a) / (b - b),
    "interpolation": lambda a, b: torch.lerp(a, b, 0.25),
    "in place": lambda a, b: a.clone().mul_(0.9).add_(b, alpha=0.1),
    "average in half": lambda a, b: (a.half() + b.half()) / 2,
    "flattened and back": lambda a, b: torch.cat([a.flatten(), b.flatten()])[: a.numel()].view(a.shape),
}


@pytest.mark.parametrize("operation", ARITHMETIC.values(), ids=ARITHMETIC)
@pytest.mark.parametrize("assign", [True, False])
def test_arithmetic_on_state_dicts_leaves_the_mark_alone(operation: Callable, assign: bool) -> None:
    config = PreconditionConfig(gradient="stop", placement="post_skip", gain=0.5)
    first, second = (Preconditioner(config, num_heads=2).state_dict() for _ in range(2))
    combined = {key: operation(first[key], second[key]) for key in first}
    again = Preconditioner(config, num_heads=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.load_state_dict(combined, assign=assign)
        Preconditioner(config, num_heads=2).load_state_dict(again.state_dict())
    with pytest.raises(RuntimeError, match="trained with placement='post_skip'"):
        Preconditioner(PreconditionConfig(gain=0.5), num_heads=2).load_state_dict(combined)


def test_averaging_models_leaves_the_mark_alone() -> None:
    c = Preconditioner(PreconditionConfig(gain=0.5), num_heads=2)
    for average in (AveragedModel(c, use_buffers=True), AveragedModel(c, avg_fn=lambda a, b, n: (a + b) / 2)):
        average.update_parameters(c)
        average.update_parameters(c)
        c.load_state_dict(average.module.state_dict())


def old_checkpoint(gradient: int, placement: int) -> dict[str, torch.Tensor]:
    """As it was written while the mark was three integers."""
    return {MARKER: torch.tensor([1, gradient, placement], dtype=torch.int64), "gain": torch.tensor([2.0, 3.0])}


@pytest.mark.parametrize("assign", [True, False])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_checkpoint_with_three_integers_loads(assign: bool, device: str) -> None:
    c = Preconditioner(PreconditionConfig(gradient="stop", gain=0.5), num_heads=2, device=device)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if device == "meta" and not assign:
            c.to_empty(device="cpu")
        c.load_state_dict(old_checkpoint(1, 0), assign=assign)
    assert c.gain is not None
    assert c.gain.tolist() == [2.0, 3.0]
    assert c.state_dict()[MARKER].shape == Preconditioner(c.config, num_heads=2).state_dict()[MARKER].shape
    with pytest.warns(UserWarning, match="gradient='full' and the model has 'stop'"):
        c.load_state_dict(old_checkpoint(0, 0))
    with pytest.raises(RuntimeError, match="trained with placement='post_skip'"):
        c.load_state_dict(old_checkpoint(1, 1))


def test_a_module_pickled_with_three_integers_comes_up_to_date() -> None:
    for persistent in (True, False):
        c = Preconditioner(PreconditionConfig(gradient="stop"))
        c.register_buffer(MARKER, torch.tensor([1, 1, 0]), persistent=persistent)
        vars(c).update(observers=[], score_observers=[], watchers=[])
        del c.calls
        again = pickle.loads(pickle.dumps(c))
        state = Preconditioner(c.config).state_dict() if persistent else {}
        assert {key: value.shape for key, value in again.state_dict().items()} == {k: v.shape for k, v in state.items()}
        assert again(torch.randn(2, 3, 4)).shape == (2, 3, 4)


@pytest.mark.parametrize("state", [{}, None], ids=["plain checkpoint", "its own"])
@pytest.mark.filterwarnings("ignore:this checkpoint does not say")
def test_nothing_stays_on_meta_when_tensors_are_assigned(state: dict | None) -> None:
    for marker in (True, False):
        c = Preconditioner(PreconditionConfig(), marker=marker, device="meta")
        c.load_state_dict(
            Preconditioner(PreconditionConfig(), marker=marker).state_dict() if state is None else state, assign=True
        )
        assert all(tensor.device.type == "cpu" for tensor in [*c.parameters(), *c.buffers()])
        assert c.to("cpu")(torch.randn(2, 3, 4)).shape == (2, 3, 4)


def test_memory_that_was_never_written_is_reset() -> None:
    c = Preconditioner(PreconditionConfig(gain=0.5), num_heads=2, device="meta").to_empty(device="cpu")
    for tensor in (c.gain, c.get_buffer(MARKER)):
        torch.nn.init.constant_(tensor, float("nan"))
    Preconditioner(PreconditionConfig(gain=0.5), num_heads=2).load_state_dict(c.state_dict())
    c.reset_parameters()
    fresh = Preconditioner(PreconditionConfig(gain=0.5), num_heads=2).state_dict()
    assert all(torch.equal(value, fresh[key]) for key, value in c.state_dict().items())
    Preconditioner(PreconditionConfig(), marker=False).reset_parameters()


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


def test_a_module_pickled_with_options_that_selected_attention() -> None:
    c = Preconditioner(PreconditionConfig(gradient="stop"))
    vars(c.config).update(class_attention=False, pooling=True, channel=True, linear=False)
    again = pickle.loads(pickle.dumps(c))
    assert again.config == PreconditionConfig(gradient="stop")
    assert "pooling" not in again.config.to_dict()


def test_a_gain_that_is_offloaded_comes_in_for_the_call() -> None:
    q, config = torch.randn(2, 3, 5, 4), PreconditionConfig(gain=0.5)
    c = Preconditioner(config, num_heads=3)
    expected, rows = c.attend(q, q, q), c(q)
    add_hook_to_module(
        c,
        AlignDevicesHook(execution_device="cpu", offload=True, weights_map=dict(c.state_dict()), place_submodules=True),
    )
    for tensor in c.parameters():
        assert tensor.is_meta
    assert torch.equal(c.attend(q, q, q), expected)
    assert c.gain is not None
    assert c.gain.is_meta
    assert torch.equal(c(q), rows)
    with pytest.raises(RuntimeError, match=r"the gain of this preconditioner is on the meta device.*assign=True"):
        Preconditioner(config, num_heads=3, device="meta").attend(q, q, q)


@pytest.mark.parametrize(
    ("mark", "expected"),
    [
        (torch.tensor(1.0), r"has shape \(\)"),
        (torch.tensor(-1), r"has shape \(\)"),
        (torch.tensor([-1, -1, -1]), r"mark \[-1, -1, -1\] is of another version"),
        (torch.tensor([3, 0, 0]), "of another version"),
        (torch.ones(3, 2, 2), r"has shape \(3, 2, 2\)"),
        (torch.ones(2, 2, 2, dtype=torch.complex64)[0], r"has shape \(2, 2\)"),
        (7, "the checkpoint's mark is 7, and a mark is a tensor"),
        ([2, 2, 2], "a mark is a tensor"),
        ("full", "a mark is a tensor"),
    ],
    ids=str,
)
@pytest.mark.parametrize("strict", [True, False])
def test_marks_that_are_none_give_one_sentence_with_the_key(mark: object, expected: str, strict: bool) -> None:
    holder = torch.nn.ModuleDict(
        {"attn": torch.nn.ModuleDict({"preconditioner": Preconditioner(PreconditionConfig())})}
    )
    with pytest.raises(
        RuntimeError, match=rf"attn\.preconditioner\.{MARKER}: .*{expected}.*(load it with|copy the key)"
    ):
        holder.load_state_dict({f"attn.preconditioner.{MARKER}": mark}, strict=strict)


@pytest.mark.parametrize(
    "options", [{}, {"strict": False}, {"cpu_offload": True}, {"ignore_frozen_params": True}], ids=str
)
@pytest.mark.parametrize("gradient", ["full", "stop"])
def test_a_plain_dict_that_torch_completes_with_the_models_own_mark_warns(options: dict, gradient: str) -> None:
    plain, options = attention(None), StateDictOptions(full_state_dict=True, **options)
    converted = attention(PreconditionConfig(gradient=gradient))
    connect(0, 1, free_port())
    try:
        with pytest.warns(UserWarning, match="does not say that it was trained with preconditioned attention"):
            set_model_state_dict(converted, plain.state_dict(), options=options)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            own = get_model_state_dict(converted, options=options)
            set_model_state_dict(converted, own, options=options)
            some = {key: value for key, value in own.items() if "in_proj" in key}  # one file of several
            set_model_state_dict(converted, some, options=StateDictOptions(full_state_dict=True, strict=False))
        with pytest.warns(UserWarning, match="gain: the checkpoint has no gain here"):
            set_model_state_dict(attention(PreconditionConfig(gradient=gradient, gain=0.5)), own, options=options)
    finally:
        dist.destroy_process_group()


def attention(config: PreconditionConfig | None) -> torch.nn.Module:
    model = torch.nn.Sequential(torch.nn.MultiheadAttention(4, 2))
    if config is not None:
        precondition_(model, config)
    return model
