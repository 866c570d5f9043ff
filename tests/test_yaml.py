import pytest

from preconditioned_attention._yaml import format_yaml, parse_yaml


def test_round_trip_keeps_numbers_and_order() -> None:
    content = {"b": 0.1 + 0.2, "a": [1e-5, 3, None], "c": {"text": "1e-3", "flag": True}}
    again = parse_yaml(format_yaml(content), source="it")
    assert again == content
    assert list(again) == ["b", "a", "c"]


@pytest.mark.parametrize(("text", "number"), [("1e-3", 1e-3), ("3E5", 3e5), ("-2e+1", -20.0), ("1.5e-3", 1.5e-3)])
def test_numbers_without_a_point(text: str, number: float) -> None:
    assert parse_yaml(f"rate: {text}", source="it") == {"rate": number}


def test_text_that_only_looks_like_a_number_stays_text() -> None:
    assert parse_yaml("a: e3\nb: 1e\nc: run-1e3", source="it") == {"a": "e3", "b": "1e", "c": "run-1e3"}


@pytest.mark.parametrize("text", ["- 1\n- 2", "just text", ""])
def test_not_a_mapping(text: str) -> None:
    with pytest.raises(ValueError, match=r"file\.yaml must hold a mapping"):
        parse_yaml(text, source="file.yaml")


def test_not_yaml() -> None:
    with pytest.raises(ValueError, match=r"file\.yaml is not valid YAML: .*line 1"):
        parse_yaml("a: [1, 2", source="file.yaml")


def test_no_objects_are_built() -> None:
    with pytest.raises(ValueError, match="not valid YAML"):
        parse_yaml("a: !!python/object/apply:os.getcwd []", source="it")


def test_dates_stay_text_and_come_back() -> None:
    content = {"day": "2020-01-01", "time": "1:30", "number": "010"}
    assert parse_yaml("day: 2020-01-01", source="it") == {"day": "2020-01-01"}
    assert parse_yaml(format_yaml(content), source="it") == content


def test_aliases_and_merges_are_read() -> None:
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a"
    assert parse_yaml(text, source="it") == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": {"x": 1, "y": 2}}


def test_a_number_and_the_text_of_it_are_two_keys() -> None:
    assert parse_yaml("1: a\n'1': b", source="it") == {1: "a", "1": "b"}
