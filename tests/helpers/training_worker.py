"""Train in processes of their own: alone, two that are connected, or one to be killed.

They are forked from a server that has imported everything, so that starting one costs no more than the run.
"""

import contextlib
import json
import multiprocessing
import os
import resource
import signal
import socket
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from preconditioned_attention.lab.training import TrainConfig, train
from tests.helpers import toy_task  # noqa: F401 - names the task

LIMIT_S = 180
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([__name__, "accelerate", "timm", "sklearn.datasets", "torch.utils.tensorboard"])


class Run:
    """A run in a new process. ``rank`` and ``port`` connect ``world`` of them."""

    def __init__(
        self,
        config: TrainConfig,
        output: Path,
        *,
        rank: int | None = None,
        port: int = 0,
        world: int = 2,
        **options: Any,
    ) -> None:
        self.output = output
        self.errors_file = output.with_name(f"{output.name}-errors-{rank}.txt")
        # One thread: the same arithmetic in every run, and tests beside tests do not slow each other.
        environment = {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
        if rank is not None:
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            environment |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
        arguments = (config.to_yaml(), output, environment, self.errors_file, options)
        self.process: ForkServerProcess = SERVER.Process(target=_work, args=arguments)
        self.process.start()

    def end(self) -> "Run":
        self.process.join(LIMIT_S)
        if self.process.is_alive():
            self.process.kill()
            raise AssertionError(f"the run did not end within {LIMIT_S} s: {self.errors}")
        return self

    @property
    def errors(self) -> str:
        return self.errors_file.read_text()

    @property
    def ended_well(self) -> bool:
        return self.process.exitcode == 0

    def signal_at(self, step: int, number: int) -> None:
        """Send a signal as soon as the metrics hold ``step``."""
        deadline = time.monotonic() + LIMIT_S
        while self.process.is_alive() and _steps_written(self.output) < step:
            assert time.monotonic() < deadline, f"step {step} did not come within {LIMIT_S} s"
            time.sleep(0.002)
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.kill(self.process.pid, number)

    def kill_at(self, step: int) -> None:
        """SIGKILL as soon as the metrics hold ``step``; fail if the run ended before."""
        self.signal_at(step, signal.SIGKILL)
        self.process.join()
        assert self.process.exitcode == -signal.SIGKILL, self.errors


def run_alone(config: TrainConfig, output: Path, **options: Any) -> Run:
    return Run(config, output, **options).end()


def run_on_two(config: TrainConfig, output: Path, **options: Any) -> list[Run]:
    return [run.end() for run in start_on(2, config, output, **options)]


def run_on(world: int, config: TrainConfig, output: Path, **options: Any) -> None:
    """Train on so many processes, and fail if one of them does."""
    for run in start_on(world, config, output, **options):
        assert run.end().ended_well, run.errors


def start_on(world: int, config: TrainConfig, output: Path, **options: Any) -> list[Run]:
    port = free_port()
    return [Run(config, output, rank=rank, port=port, world=world, **options) for rank in range(world)]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def records(output: Path, kind: str) -> list[dict[str, Any]]:
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def losses(output: Path) -> list[float]:
    steps = records(output, "step")
    assert [record["step"] for record in steps] == list(range(1, len(steps) + 1))
    return [record["loss"] for record in steps]


def _steps_written(output: Path) -> int:
    path = output / "metrics.jsonl"
    return path.read_text().count('"kind": "step"') if path.exists() else 0


def _work(config: str, output: Path, environment: dict[str, str], errors: Path, options: dict[str, Any]) -> None:
    with errors.open("w") as file:
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    os.environ.update(options.pop("environment", {}))
    if options.pop("present_as_accelerator", False):
        present_as_accelerator()
    torch.set_num_threads(1)
    limit = options.pop("file_size_limit", None)
    if limit is not None:  # what a full disk does, for one file
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    gradients = options.pop("save_gradients", None)
    if gradients is not None:
        register_optimizer_step_pre_hook(_saving_gradients(gradients))
    train(TrainConfig.from_yaml(config), output, progress=False, **options)


def present_as_accelerator() -> None:
    """Make Accelerate take this process, connected by gloo, for one that has a GPU: its FSDP is for GPUs only.

    Everything after that choice is Accelerate's own code. On a GPU the backend would be NCCL and the parts lie in its
    memory; nothing else of what a run does depends on the device.
    """
    from accelerate.state import DistributedType, PartialState

    def prepare_backend(self: Any, *args: Any) -> tuple[str, DistributedType]:
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo")
        return "gloo", DistributedType.MULTI_GPU

    PartialState._prepare_backend = prepare_backend
    PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))


def _saving_gradients(path: Path):
    def hook(optimizer, args, kwargs) -> None:
        if os.environ.get("RANK", "0") == "0":
            torch.save([p.grad.clone() for group in optimizer.param_groups for p in group["params"]], path)

    return hook
