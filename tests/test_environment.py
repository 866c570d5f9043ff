import json
import platform

import torch

from preconditioned_attention import __version__
from preconditioned_attention._environment import describe_environment, describe_machine


def test_says_what_ran_where() -> None:
    environment = describe_environment()
    assert environment["python"] == platform.python_version()
    assert environment["threads"] == torch.get_num_threads()
    assert environment["packages"]["preconditioned-attention"] == __version__
    assert environment["cpu"]
    assert json.loads(json.dumps(environment)) == environment


def test_a_package_that_is_not_installed_is_none(monkeypatch) -> None:
    from preconditioned_attention import _environment as environment

    monkeypatch.setattr(environment, "PACKAGES", ("no-such-package-anywhere",))
    assert describe_environment()["packages"] == {"no-such-package-anywhere": None}


def test_a_machine_has_a_name_which_published_results_do_not_hold() -> None:
    machine, environment = describe_machine(), describe_environment()
    assert machine["host"] == platform.node()
    assert "host" not in environment
    assert {*environment} == {*machine} - {"host"}
