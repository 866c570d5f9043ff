import pytest

from preconditioned_attention.lab.tasks import TASKS, Digits, make_task


def test_tasks_are_found_by_name() -> None:
    assert make_task("digits", {"depth": 2}) == Digits(depth=2)
    needed = {"glue": {"task": "cola"}}
    for name in TASKS:
        assert make_task(name, needed.get(name, {})).name == name


def test_unknown_tasks_and_options() -> None:
    with pytest.raises(ValueError, match=r"unknown task 'digit' \(did you mean 'digits'\?\); known: digits"):
        make_task("digit", {})
    with pytest.raises(ValueError, match=r"unknown option of task 'digits': 'deph' \(did you mean 'depth'\?\)"):
        make_task("digits", {"deph": 2})
