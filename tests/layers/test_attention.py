"""What holds for all attention layers."""

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from preconditioned_attention import ConditionMonitor, PreconditionConfig, is_preconditioned, layers
from preconditioned_attention.layers import (
    ChannelGroupAttention,
    CrossCovarianceAttention,
    LinearAttention,
    MultiheadAttention,
    NystromAttention,
    Preconditioner,
    WindowAttention,
)
from preconditioned_attention.layers._attention import AttentionLayer
from preconditioned_attention.layers.observation import RowObserver, attach_observer
from tests.helpers.explicit import relative_error

MARK = "preconditioner.requires_preconditioned_attention"

# (dim, heads) and the options that a small layer needs
LAYERS: dict[str, Callable[..., nn.Module]] = {
    "multihead": lambda **o: MultiheadAttention(12, 3, num_kv_heads=1, **o),
    "window": lambda **o: WindowAttention(12, (2, 4), 3, **o),
    "cross-covariance": lambda **o: CrossCovarianceAttention(12, 3, **o),
    "channel group": lambda **o: ChannelGroupAttention(12, 3, **o),
    "nystrom": lambda **o: NystromAttention(12, 3, num_landmarks=3, conv_kernel_size=3, **o),
    "linear": lambda **o: LinearAttention(12, 3, **o),
}
every_layer = pytest.mark.parametrize("build", LAYERS.values(), ids=LAYERS.keys())


def tokens(**options: object) -> Tensor:
    return torch.randn(2, 8, 12, **options)


def seeded(build: Callable[..., nn.Module], **options: object) -> nn.Module:
    torch.manual_seed(1)
    return build(**options)


def test_every_exported_layer_is_here() -> None:
    exported = {getattr(layers, name) for name in layers.__all__} - {Preconditioner}
    assert {type(build()) for build in LAYERS.values()} == exported
    assert all(issubclass(layer, AttentionLayer) for layer in exported)


@every_layer
def test_plain_and_preconditioned_differ_in_the_child_alone(build: Callable[..., nn.Module]) -> None:
    plain, preconditioned = seeded(build, precondition=None), seeded(build)
    assert not is_preconditioned(plain)
    assert is_preconditioned(preconditioned)
    assert not hasattr(plain, "preconditioner")
    extra = preconditioned.state_dict().keys() - plain.state_dict().keys()
    assert extra == {MARK}
    assert all(torch.equal(preconditioned.state_dict()[key], value) for key, value in plain.state_dict().items())
    x = tokens()
    assert relative_error(preconditioned(x), plain(x)) > 0.1


@every_layer
def test_rows_of_unit_norm_reach_the_merge(build: Callable[..., nn.Module]) -> None:
    layer = build(dtype=torch.float64)
    seen: list[tuple[Tensor, Tensor]] = []
    attach_observer(layer.preconditioner, RowObserver(lambda before, after: seen.append((before, after))))
    layer(tokens(dtype=torch.float64))
    ((before, after),) = seen
    assert before.shape == after.shape == (2, 3, 8, 4)
    assert (after.norm(dim=-1) - 1).abs().max() <= 1e-14
    assert (before.norm(dim=-1) - 1).abs().max() > 0.01


@every_layer
def test_checkpoints_know_which_form_they_are(build: Callable[..., nn.Module]) -> None:
    plain, preconditioned, other = build(precondition=None), build(), build()
    with pytest.raises(RuntimeError, match="requires_preconditioned_attention"):
        plain.load_state_dict(preconditioned.state_dict())
    with pytest.warns(UserWarning, match="does not say that it was trained with preconditioned attention"):
        preconditioned.load_state_dict(plain.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.load_state_dict(preconditioned.state_dict())
    x = tokens()
    assert torch.equal(other(x), preconditioned(x))


@every_layer
def test_a_gain_per_head_is_learned(build: Callable[..., nn.Module]) -> None:
    layer = build(precondition=PreconditionConfig(gain=0.5))
    assert layer.preconditioner.gain.tolist() == [0.5] * 3
    layer(tokens()).square().sum().backward()
    assert (layer.preconditioner.gain.grad != 0).all()


@every_layer
@pytest.mark.parametrize("mode", ["plain", "preconditioned"])
def test_compiles_to_one_graph(build: Callable[..., nn.Module], mode: str) -> None:
    options = {"precondition": None} if mode == "plain" else {}
    layer = build(dtype=torch.float64, **options)
    compiled = copy.deepcopy(layer)
    compiled.compile(fullgraph=True, backend="aot_eager")
    x = tokens(dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 8, 12, dtype=torch.float64)
    results = []
    for module in (layer, compiled):
        out = module(x)
        results.append([out, *torch.autograd.grad((out * weight).sum(), [x, *module.parameters()])])
    largest = max(result.norm() for result in results[0])
    assert all((a - b).norm() <= 1e-12 * largest for a, b in zip(*results, strict=True))


@every_layer
def test_the_monitor_sees_it(build: Callable[..., nn.Module]) -> None:
    model = nn.Sequential(build())
    with ConditionMonitor(model) as monitor:
        model(tokens())
    (row,) = monitor.summary()
    assert (row["layer"], row["matrices"]) == ("0", 6)
    assert row["spread_after"] <= torch.finfo(torch.float32).eps
    assert row["spread_before"] > 1e-3


@every_layer
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_low_precision(build: Callable[..., nn.Module], dtype: torch.dtype) -> None:
    """Twice the error of the plain layer in the same precision, and the rounding of the output itself.

    The rows are shorter than 1, so the plain output is divided by less: its error is measured at the scale of the rows.
    """
    errors = []
    for options in ({"precondition": None}, {}):
        exact, low = seeded(build, dtype=torch.float64, **options), seeded(build, dtype=torch.float64, **options)
        low = low.to(dtype)
        exact.load_state_dict(low.state_dict())
        x = tokens().to(dtype)
        out = low(x)
        assert out.dtype == dtype
        errors.append(relative_error(out.double(), exact(x.double())))
    assert errors[1] <= 2 * errors[0] + torch.finfo(dtype).eps


@every_layer
def test_what_does_not_fit(build: Callable[..., nn.Module]) -> None:
    with pytest.raises(
        TypeError, match="precondition must be a PreconditionConfig, or None for plain attention; got True"
    ):
        build(precondition=True)
    layer = build()
    with pytest.raises(ValueError, match=r"x must have shape \(B, N, dim\) with dim = 12; got \(2, 8, 11\)"):
        layer(torch.randn(2, 8, 11))
    with pytest.raises(ValueError, match=r"x must have shape .* got \(8, 12\)"):
        layer(torch.randn(8, 12))


SIZED: dict[str, Callable[..., nn.Module]] = {
    "multihead": MultiheadAttention,
    "window": lambda dim, num_heads, **o: WindowAttention(dim, 2, num_heads, **o),
    "cross-covariance": CrossCovarianceAttention,
    "channel group": ChannelGroupAttention,
    "nystrom": NystromAttention,
    "linear": LinearAttention,
}


@pytest.mark.parametrize("build", SIZED.values(), ids=SIZED.keys())
def test_sizes_that_do_not_go_together(build: Callable[..., nn.Module]) -> None:
    with pytest.raises(ValueError, match=r"dim must be a multiple of num_heads .* got 10 and 3"):
        build(10, 3)
    with pytest.raises(ValueError, match="num_heads must be at least 1; got 0"):
        build(10, 0)
    with pytest.raises(TypeError, match="dim must be an integer"):
        build(10.0, 2)
    with pytest.raises(ValueError, match="head_dim must be at least 2: rows of one entry"):
        build(4, 4)
    build(4, 4, precondition=None)


@pytest.mark.parametrize("name", [name for name in LAYERS if name not in ("multihead", "window")])
def test_an_unsupported_backend_raises(name: str) -> None:
    with pytest.raises(ValueError, match=r"backend='flash' does not support .*Attention, whose rows are not"):
        LAYERS[name](precondition=PreconditionConfig(backend="flash"))
    LAYERS[name](precondition=PreconditionConfig(backend="composition"))


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "nystrom"])
def test_a_placement_without_a_skip_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="placement='post_skip' concerns attention that adds a skip"):
        LAYERS[name](precondition=PreconditionConfig(placement="post_skip"))
