"""Which attention is converted, and saved selections of today and of earlier versions."""

import json
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import preconditioned_attention as pa
from preconditioned_attention import PreconditionConfig
from preconditioned_attention.selection import DEFAULT_INCLUDE, KINDS, check_include, join_options
from preconditioned_attention.selection import split_options as split
from tests.helpers.former import FORMER


def make(kind: Any) -> type[nn.Module]:
    class Pool(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = self.qkv(x).chunk(3, -1)
            out: torch.Tensor = self.proj(torch.softmax(q @ k.mT, -1) @ v)
            return out

    pa.register_prehook(Pool, hook_target="proj", num_heads=1, kind=kind)
    return Pool


def model() -> nn.Module:
    return nn.ModuleDict({kind: make(kind)() for kind in KINDS})


def converted(include: Any) -> set[str]:
    return {entry.path for entry in pa.precondition_(model(), include=include).converted}


def test_each_kind_is_converted_where_it_is_included_and_no_other() -> None:
    assert {e.path for e in pa.precondition_(model()).converted} == {"softmax", "channel"} == set(DEFAULT_INCLUDE)
    assert converted("all") == set(KINDS)
    for kind in KINDS:
        assert converted([kind]) == {kind}


def test_what_is_left_out_says_how_to_include_it() -> None:
    report = pa.precondition_(model(), include={"channel"})
    reasons = {entry.path: entry.reason for entry in report.entries if entry.status == "skipped"}
    assert reasons["softmax"] == "softmax is not included; include=('channel', 'softmax') converts it"
    assert reasons["linear"] == "linear is not included; include=('channel', 'linear') converts it"
    assert not report.left_out


def test_check_adapter_and_conversion_select_alike() -> None:
    holder, x = make("pooling")(), torch.randn(2, 5, 8)
    assert pa.check_adapter(holder, x, include=["pooling"]).complete
    with pytest.raises(ValueError, match=r"include=\('softmax', 'channel', 'pooling'\) converts it"):
        pa.check_adapter(holder, x)


@pytest.mark.parametrize(
    ("include", "error", "message"),
    [
        ((), ValueError, "include must not be empty; the kinds of attention are 'softmax', 'class_attention', 'pool"),
        (["softmax", "chanel"], ValueError, "unknown kind of attention 'chanel'; the kinds are 'softmax', 'class_att"),
        ("pooling", TypeError, r"several names, such as include=\('softmax', 'channel', 'pooling'\); got 'pooling'"),
        ("softmax", TypeError, r"such as include=\('softmax',\); got 'softmax'"),
        (None, TypeError, "include must be 'all' or several names"),
        (True, TypeError, "include must be 'all' or several names"),
    ],
)
@pytest.mark.parametrize("call", [pa.precondition_, pa.conversion.plan_conversion])
def test_bad_selections_are_refused(call: Callable[..., object], include: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call(model(), include=include)


def test_names_are_kept_once_and_in_one_order() -> None:
    assert (
        check_include({"linear", "softmax"}) == check_include(["linear", "softmax", "linear"]) == ("softmax", "linear")
    )


def test_saved_options_come_back() -> None:
    config = PreconditionConfig(gain=0.5)
    saved = json.loads(json.dumps(join_options(config, ("softmax", "pooling"))))
    assert saved["include"] == ["softmax", "pooling"]
    assert split(saved) == (config, ("softmax", "pooling"))
    assert split({}) == (PreconditionConfig(), DEFAULT_INCLUDE)


@pytest.mark.parametrize(
    "former",
    [{}, {"pooling": True}, {"channel": False}, {"class_attention": True, "pooling": True, "linear": True}],
    ids=str,
)
def test_options_of_earlier_versions_convert_the_same_modules(former: dict[str, bool]) -> None:
    options = json.loads(json.dumps(FORMER | former))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config, include = split(options)
    assert config == PreconditionConfig(gradient="stop")
    names = ("class_attention", "pooling", "channel", "linear")
    expected = {"softmax", *(name for name in names if options[name])}
    assert {e.path for e in pa.precondition_(model(), config, include=include).converted} == expected


def test_unknown_options_are_named() -> None:
    with pytest.raises(ValueError, match="unknown option\\(s\\) 'poling'"):
        split({"poling": True})
