import socket
import subprocess
import sys
import time

import pytest

from preconditioned_attention.cli import main
from preconditioned_attention.lab.comparison.scheduling import ray_cluster
from preconditioned_attention.lab.comparison.scheduling.ray_cluster import connected, look

pytest.importorskip("ray")


@pytest.mark.parametrize(
    "address", ["nonsense:1", "127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999", "[::1]:1", "x" * 300 + ":80"]
)
def test_an_address_without_a_cluster_is_told_at_once(tmp_path, capsys, address):
    begun = time.monotonic()
    assert main(["compare", "digits", "--steps", "2", "--output", str(tmp_path / "out"), "--ray", address]) == 2
    shown = [line for line in capsys.readouterr().err.splitlines() if line.startswith("precond:")]
    assert len(shown) == 1
    assert shown[0].startswith(f"precond: --ray {address}: no Ray cluster answers there (")
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize("address", ["nonsense", "", ":1", "host:", "local", "host:port", "host:123456"])
def test_what_is_no_address_is_told(address):
    with pytest.raises(ValueError, match=r"--ray must be auto, HOST:PORT or ray://HOST:PORT; got"), connected(address):
        pass


def test_a_port_of_something_else_does_not_hang(monkeypatch):
    monkeypatch.setattr(ray_cluster, "PROBE_SECONDS", 3.0)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(ConnectionError, match="no answer within 3 seconds"), connected(address):
            pass


def test_auto_without_a_cluster_is_told(monkeypatch):
    failed = subprocess.CompletedProcess(
        [], 1, "", "Traceback\nConnectionError: Could not find any running Ray instance"
    )
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: failed)
    with pytest.raises(ConnectionError, match=r"--ray auto: .*Could not find any running Ray"), connected("auto"):
        pass


def test_without_ray_the_extra_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["compare", "digits", "--output", str(tmp_path / "out"), "--ray", "auto"]) == 2
    assert "pip install 'preconditioned-attention[ray]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_ray_and_workers_exclude_each_other(tmp_path, capsys):
    arguments = ["--output", str(tmp_path / "out"), "--ray", "auto", "--workers", "2"]
    assert main(["compare", "digits", *arguments]) == 2
    assert "exclude each other; give one" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_node_sees_the_folder_or_not(tmp_path):
    probe = tmp_path / ".probe-1"
    assert (look(probe).token, look(probe).writes) == (None, False)
    probe.write_text("token")
    assert (look(probe).token, look(probe).writes) == ("token", True)
