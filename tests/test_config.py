import dataclasses
import json

import pytest

from preconditioned_attention import PreconditionConfig


def test_defaults_are_the_method() -> None:
    assert PreconditionConfig().to_dict() == {
        "gradient": "full",
        "gain": None,
        "eps": None,
        "placement": "pre_skip",
        "backend": "auto",
    }


def test_frozen_and_keyword_only() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PreconditionConfig().gradient = "stop"  # type: ignore[misc]
    with pytest.raises(TypeError):
        PreconditionConfig("stop")  # type: ignore[misc]


def test_round_trip_through_json() -> None:
    config = PreconditionConfig(gradient="stop", gain=0.25, eps=1e-6)
    assert PreconditionConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"gradient": "half"}, ValueError, ["gradient", "'full'", "'stop'", "'half'"]),
        ({"placement": "middle"}, ValueError, ["placement", "'pre_skip'", "'middle'"]),
        ({"backend": "cudnn9"}, ValueError, ["backend", "'auto'", "'cudnn9'"]),
        ({"eps": -1.0}, ValueError, ["eps", "-1.0"]),
        ({"eps": float("nan")}, ValueError, ["eps", "nan"]),
        ({"eps": "small"}, TypeError, ["eps", "'small'"]),
        ({"gain": True}, TypeError, ["gain", "True"]),
        ({"gain": float("inf")}, ValueError, ["gain", "inf"]),
        ({"pooling": True}, TypeError, ["pooling"]),
    ],
)
def test_bad_values_are_named(options: dict, error: type[Exception], words: list[str]) -> None:
    with pytest.raises(error) as caught:
        PreconditionConfig(**options)
    assert all(word in str(caught.value) for word in words)


def test_unknown_option_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown option\(s\) 'gradiant'; the options are gradient, gain"):
        PreconditionConfig.from_dict({"gradiant": "full"})


FORMER = {"gradient": "stop", "class_attention": False, "pooling": False, "channel": True, "linear": False}


def test_options_of_earlier_versions_are_read_without_what_selected_attention() -> None:
    assert PreconditionConfig.from_dict(FORMER) == PreconditionConfig(gradient="stop")
    with pytest.warns(UserWarning, match=r"argument of precondition_ now: pass include=\('softmax', 'pooling'\)"):
        config = PreconditionConfig.from_dict(FORMER | {"pooling": True, "channel": False})
    assert config == PreconditionConfig(gradient="stop")
