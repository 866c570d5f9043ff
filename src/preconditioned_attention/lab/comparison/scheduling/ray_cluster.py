"""Connect to a Ray cluster, and check that its nodes see the comparison's folder and have the same versions."""

from __future__ import annotations

import contextlib
import logging
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ...._extras import require
from ...._version import __version__

CONNECT_SECONDS = 5.0
PROBE_SECONDS = 45.0
"""Ray itself tries for minutes to reach an address that does not answer, and cannot be interrupted meanwhile."""

CONNECT = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR')"


@contextlib.contextmanager
def connected(address: str) -> Iterator[Any]:
    """The module ``ray``, connected to the cluster at ``address`` (``"auto"``, ``"HOST:PORT"``, ``"ray://HOST:PORT"``).

    Raises:
        ImportError: Ray is not installed. ValueError: it is no such address.
        ConnectionError: no cluster answers there.
    """
    ray = require("ray", extra="ray")
    _check_answer(address)
    try:
        with _handlers_kept():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (RuntimeError, ValueError, OSError) as error:
        raise ConnectionError(_no_cluster(address, _first_line(str(error)))) from error
    try:
        yield ray
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
    """Put the handler of SIGTERM back, which Ray replaces by one that exits."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _check_answer(address: str) -> None:
    """Raise unless a cluster answers. Ray is asked from another process, which can be killed."""
    match = re.fullmatch(r"(?:ray://)?(.+):(\d{1,5})", address)
    if match is None and address != "auto":
        raise ValueError(f"--ray must be auto, HOST:PORT or ray://HOST:PORT; got {address!r}")
    if match is not None:
        try:
            socket.create_connection((match[1].strip("[]"), int(match[2])), timeout=CONNECT_SECONDS).close()
        except (OSError, OverflowError, UnicodeError) as error:
            raise ConnectionError(_no_cluster(address, str(error))) from error
    try:
        done = subprocess.run(
            [sys.executable, "-c", CONNECT, address], capture_output=True, text=True, timeout=PROBE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ConnectionError(_no_cluster(address, f"no answer within {PROBE_SECONDS:g} seconds")) from error
    if done.returncode:
        raise ConnectionError(_no_cluster(address, _last_line(done.stderr)))


def _no_cluster(address: str, reason: str) -> str:
    return (
        f"--ray {address}: no Ray cluster answers there ({reason}); start one with `ray start --head`, and give auto "
        "on one of its machines, or the address that it printed"
    )


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:200]


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it ended"


@dataclass(frozen=True)
class Sight:
    """What a node sees: whether the folder is the driver's, whether it can write there, and its versions."""

    token: str | None
    writes: bool
    versions: tuple[str, str]


def versions() -> tuple[str, str]:
    """Of this package and of torch."""
    return __version__, metadata.version("torch")


def look(probe: Path) -> Sight:
    """What this process sees of the file that the driver wrote; the answer is a file next to it."""
    token, writes = None, False
    with contextlib.suppress(OSError):
        token = probe.read_text()
        probe.with_name(f"{probe.name}-{secrets.token_hex(8)}").write_text(token)
        writes = True
    return Sight(token, writes, versions())


def check_nodes(ray: Any, output: Path) -> None:
    """Raise unless every node that can take a run sees ``output``, can write there, and has this process's versions.

    Raises:
        OSError: a node does not see the folder, or cannot write to it.
        RuntimeError: there is no such node, or one has other versions or does not answer.
    """
    nodes = [node for node in ray.nodes() if node["Alive"] and {"CPU", "GPU"} & set(node["Resources"])]
    if not nodes:
        raise RuntimeError("--ray: no node of the cluster offers a CPU or a GPU")
    token = secrets.token_hex(8)
    probe = output / f".probe-{token}"
    try:
        probe.write_text(token)
        for node, sight in zip(nodes, _look_everywhere(ray, nodes, probe), strict=True):
            _check_sight(node["NodeManagerAddress"], sight, token, output)
    finally:
        for path in output.glob(f"{probe.name}*"):
            path.unlink(missing_ok=True)


def _look_everywhere(ray: Any, nodes: list[dict[str, Any]], probe: Path) -> list[Sight | Exception]:
    strategy = require("ray.util.scheduling_strategies", extra="ray").NodeAffinitySchedulingStrategy
    tasks = [
        ray.remote(look).options(num_cpus=0, scheduling_strategy=strategy(node["NodeID"], soft=False)).remote(probe)
        for node in nodes
    ]
    ray.wait(tasks, num_returns=len(tasks), timeout=PROBE_SECONDS)
    return [_answer(ray, task) for task in tasks]


def _answer(ray: Any, task: Any) -> Sight | Exception:
    try:
        sight: Sight = ray.get(task, timeout=0)
    except Exception as error:  # of Ray, or of the node, as when it lacks this package
        return error
    return sight


def _check_sight(node: str, sight: Sight | Exception, token: str, output: Path) -> None:
    if isinstance(sight, Exception):
        words = _last_line(str(sight)) if str(sight) else type(sight).__name__
        raise RuntimeError(f"--ray: node {node} cannot take a run: {words}")
    if sight.versions != versions():
        mine, other = (" and torch ".join(pair) for pair in (versions(), sight.versions))
        raise RuntimeError(f"--ray: node {node} has preconditioned-attention {other}, and this process {mine}")
    if sight.token != token:
        raise OSError(f"--ray: node {node} does not see {output}; choose a folder that every node shares (--output)")
    if not sight.writes:
        raise OSError(f"--ray: node {node} cannot write to {output}; choose a folder that every node can write to")
