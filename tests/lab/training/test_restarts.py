import os

import pytest
import torch.distributed as dist

from preconditioned_attention.lab.training.restarts import SHARED, leave_former_store


@pytest.fixture
def launched(monkeypatch):
    """The environment of torchrun's only process, and the store that torchrun keeps."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    values = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "RANK": "0", "WORLD_SIZE": "1"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(SHARED, "True")
    return store


def test_the_first_attempt_uses_the_store_of_torchrun(launched, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    leave_former_store()
    assert environment() == (str(launched.port), "True")


def test_every_later_attempt_has_a_new_store_that_all_processes_find(launched, monkeypatch):
    ports = set()
    for attempt in ("1", "2"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", attempt)
        found = [port_of(launched, monkeypatch, rank) for rank in ("0", "1")]
        assert found[0] == found[1] != str(launched.port)
        ports.add(found[0])
    assert len(ports) == 2


def test_once_it_was_left_nothing_changes(launched, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    leave_former_store()
    before = environment()
    leave_former_store()
    assert environment() == before
    dist.init_process_group("gloo")
    dist.destroy_process_group()


def port_of(store, monkeypatch, rank: str) -> str:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    monkeypatch.setenv(SHARED, "True")
    leave_former_store()
    port, shared = environment()
    assert shared == "False"
    return port


def environment() -> tuple[str, str]:
    return os.environ["MASTER_PORT"], os.environ[SHARED]
