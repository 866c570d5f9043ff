from pathlib import Path

import pytest

from preconditioned_attention.lab.tasks import TASKS, ImageClassification, Task, make_task
from tests.helpers.toy_task import Toy


def test_tasks_are_found_by_name() -> None:
    assert make_task("image-classification", {"image_size": 32}) == ImageClassification(image_size=32)
    needed = {"glue": {"task": "cola"}}
    for name in TASKS:
        assert make_task(name, needed.get(name, {})).name == name


def test_unknown_tasks_and_options() -> None:
    with pytest.raises(ValueError, match=r"unknown task 'glu' \(did you mean 'glue'\?\); known: image-classification"):
        make_task("glu", {})
    with pytest.raises(ValueError, match=r"unknown option of task 'masked-lm': 'layer' \(did you mean 'layers'\?\)"):
        make_task("masked-lm", {"layer": 2})


def test_what_is_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "words", lambda: "no task")
    with pytest.raises(TypeError, match=r"TASKS\['words'\] must make a Task .*; got 'no task'"):
        make_task("words", {})


def test_what_a_task_does_without_methods_of_its_own(tmp_path: Path) -> None:
    task, model = Toy(), Toy().build_model()
    assert (task.baselines(), task.pictures(model), task.samples(model), task.describe_data()) == ({}, {}, {}, {})
    assert task.pretrained is False
    with pytest.raises(ValueError, match="models of task 'toy' have no form that other libraries read"):
        task.export(model, tmp_path / "model")
    with pytest.raises(TypeError, match="abstract"):
        Task()  # type: ignore[abstract]
