"""The machines that did the runs of a comparison: what each is, how many runs it did, and how many at a time."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..._environment import describe_environment
from .records import RunRecord

PACKAGE = "preconditioned-attention"
UNKNOWN_HOST = "unknown"


@dataclass(frozen=True)
class Machine:
    """A machine in one state of its software.

    Args:
        environment: what `describe_machine` returned there, without the date.
        runs: how many runs of the comparison it did.
        at_a_time: the largest number of them that went on at the same time.
    """

    environment: Mapping[str, Any]
    runs: int
    at_a_time: int

    @property
    def host(self) -> str:
        """Its name in its network."""
        return str(self.environment.get("host") or UNKNOWN_HOST)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"host": self.host, "runs": self.runs, "at_a_time": self.at_a_time, "environment": self.environment}


def machine_of(record: RunRecord) -> str | None:
    """What two runs of the same machine, in the same state of its software, share; None if it was not recorded."""
    if not record.environment:
        return None
    return json.dumps({name: value for name, value in record.environment.items() if name != "date"}, sort_keys=True)


def list_machines(records: Iterable[RunRecord]) -> tuple[Machine, ...]:
    """The machines of these runs, by name; without runs of earlier versions, which do not say where they were done."""
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        machine = machine_of(record)
        if machine is not None:
            groups.setdefault(machine, []).append(record)
    machines = [Machine(json.loads(key), len(runs), _at_a_time(runs)) for key, runs in sorted(groups.items())]
    return tuple(sorted(machines, key=lambda machine: machine.host))


def merge_environments(records: Iterable[RunRecord]) -> dict[str, Any]:
    """One environment for all runs: a list where they differ, and the date of the last.

    This machine's, if no run says where it was done.
    """
    environments = [record.environment for record in records if record.environment]
    if not environments:
        return describe_environment()
    merged = {name: value for name, value in _merge(environments).items() if name != "date"}
    dates = [str(environment["date"]) for environment in environments if environment.get("date")]
    return {**({"date": max(dates)} if dates else {}), **merged}


def _merge(values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = dict.fromkeys(name for value in values for name in value)
    return {name: _merge_entry([value.get(name) for value in values]) for name in names}


def _merge_entry(entries: Sequence[Any]) -> Any:
    if all(entry == entries[0] for entry in entries):
        return entries[0]
    if all(isinstance(entry, Mapping) for entry in entries):
        return _merge(entries)
    return sorted({json.dumps(entry): entry for entry in entries}.values(), key=json.dumps)


def _at_a_time(records: Sequence[RunRecord]) -> int:
    """The largest number of runs between their start and their end at one moment."""
    events: list[tuple[float, int]] = []
    for record in records:
        if record.started is not None:
            start = datetime.datetime.fromisoformat(record.started).timestamp()
            events += [(start, 1), (start + record.seconds, -1)]
    running, most = 0, 1
    for _, change in sorted(events):
        running += change
        most = max(most, running)
    return most
