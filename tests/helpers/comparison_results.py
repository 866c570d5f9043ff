"""The result of a comparison without times, for the comparison of two results."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

TIMES = {"environment", "machines", "seconds", "seconds_per_step", "started", "time_ratio"}


def results_without_times(output: Path) -> dict[str, Any]:
    """What ``summary.json`` and ``runs.json.gz`` in ``output`` hold, except times and machines."""
    summary = json.loads((output / "summary.json").read_text(), parse_constant=_refuse)
    runs = json.loads(gzip.decompress((output / "runs.json.gz").read_bytes()), parse_constant=_refuse)
    return {"summary": _without_times(summary), "runs": _without_times(runs)}


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not strict JSON")


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_times(entry) for name, entry in value.items() if name not in TIMES}
    return [_without_times(entry) for entry in value] if isinstance(value, list) else value
