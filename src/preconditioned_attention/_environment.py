"""Versions, hardware and date, recorded with every result."""

from __future__ import annotations

import datetime
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("preconditioned-attention", "torch", "timm", "transformers", "accelerate", "numpy", "scikit-learn")


def describe_environment() -> dict[str, str | int | dict[str, str | None] | None]:
    """Python, package versions (None: not installed), CPU, threads, GPU and the date, as plain values."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in PACKAGES},
        "cpu": _cpu_model(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def describe_machine() -> dict[str, Any]:
    """What :func:`describe_environment` gives, and the name of this machine, for folders that are not published."""
    return {**describe_environment(), "host": platform.node()}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    """The name of the processor: from /proc/cpuinfo on Linux, elsewhere from the `platform` module."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
