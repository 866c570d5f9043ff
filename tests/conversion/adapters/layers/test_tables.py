from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from preconditioned_attention import ConditionMonitor, PreconditionConfig, is_preconditioned, precondition_, restore_
from preconditioned_attention.conversion.adapters.layers import tables as adapter
from preconditioned_attention.conversion.registry import find_adapter
from preconditioned_attention.layers import (
    ChannelGroupAttention,
    CrossCovarianceAttention,
    LinearAttention,
    MultiheadAttention,
    NystromAttention,
    WindowAttention,
)
from tests.helpers.explicit import relative_error

LAYERS: dict[str, Callable[..., nn.Module]] = {
    "multihead": lambda **o: MultiheadAttention(12, 3, **o),
    "window": lambda **o: WindowAttention(12, (2, 4), 3, **o),
    "cross-covariance": lambda **o: CrossCovarianceAttention(12, 3, **o),
    "channel group": lambda **o: ChannelGroupAttention(12, 3, **o),
    "nystrom": lambda **o: NystromAttention(12, 3, num_landmarks=3, conv_kernel_size=3, **o),
    "linear": lambda **o: LinearAttention(12, 3, **o),
}
every_layer = pytest.mark.parametrize("build", LAYERS.values(), ids=LAYERS.keys())


def built(build: Callable[..., nn.Module], precondition: PreconditionConfig | None) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(build(precondition=precondition, dtype=torch.float64))


def tokens() -> Tensor:
    return torch.randn(2, 8, 12, dtype=torch.float64)


@every_layer
@pytest.mark.parametrize("options", [{}, {"gradient": "stop"}, {"gain": 0.5}], ids=str)
def test_a_converted_layer_is_the_one_built_so(build: Callable[..., nn.Module], options: dict) -> None:
    config = PreconditionConfig(**options)
    model, x = built(build, None), tokens()
    plain, keys = model(x), list(model.state_dict())
    report = precondition_(model, config, include="all")
    (entry,) = report.entries
    assert (entry.status, entry.mechanism, entry.num_heads, entry.head_dim) == ("converted", "child module", 3, 4)
    direct = built(build, config)
    assert torch.equal(model(x), direct(x))
    report.verify(x)
    assert model.state_dict().keys() == direct.state_dict().keys()
    assert restore_(model) == 1
    assert torch.equal(model(x), plain)
    assert list(model.state_dict()) == keys


@every_layer
def test_a_layer_that_was_built_preconditioned(build: Callable[..., nn.Module]) -> None:
    model, plain, x = built(build, PreconditionConfig()), built(build, None), tokens()
    with pytest.raises(ValueError, match=r"already preconditioned: '0'\. Call restore_\(model\) first"):
        precondition_(model, include="all")
    assert restore_(model) == 1
    assert not is_preconditioned(model)
    assert torch.equal(model(x), plain(x))
    assert model.state_dict().keys() == plain.state_dict().keys()
    precondition_(model, PreconditionConfig(gradient="stop"), include="all")
    assert is_preconditioned(model)


@every_layer
def test_the_monitor_watches_a_plain_layer(build: Callable[..., nn.Module]) -> None:
    model, x = built(build, None), tokens()
    plain = model(x)
    with ConditionMonitor(model) as monitor:
        assert relative_error(model(x), plain) <= 1e-12
    assert monitor.summary()[0]["spread_after"] <= 1e-14
    assert torch.equal(model(x), plain)
    assert not is_preconditioned(model)


def test_placement_concerns_nystrom_with_its_skip() -> None:
    config = PreconditionConfig(placement="post_skip")
    model, x = built(LAYERS["nystrom"], None), tokens()
    precondition_(model, config)
    assert torch.equal(model(x), built(LAYERS["nystrom"], config)(x))
    assert not torch.equal(model(x), built(LAYERS["nystrom"], PreconditionConfig())(x))
    with pytest.raises(ValueError, match="placement='post_skip' concerns attention that adds a skip"):
        precondition_(built(LAYERS["multihead"], None), config)


def test_include_picks_channel_and_linear_attention() -> None:
    model = nn.ModuleDict({name.replace(" ", "_"): build(precondition=None) for name, build in LAYERS.items()})
    report = precondition_(model, include=["softmax"])
    status = {entry.path: entry.status for entry in report.entries}
    skipped = {path for path, state in status.items() if state == "skipped"}
    assert skipped == {"cross-covariance", "channel_group", "linear"}
    assert {path for path, state in status.items() if state == "converted"} == set(status) - skipped


def test_a_subclass_with_another_forward_is_not_served() -> None:
    class Same(MultiheadAttention):
        pass

    class Other(MultiheadAttention):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return x

    assert isinstance(find_adapter(Same(8, 2, precondition=None)), adapter.LayerChild)
    assert find_adapter(Other(8, 2, precondition=None)) is None
