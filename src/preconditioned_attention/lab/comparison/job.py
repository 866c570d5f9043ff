"""``Job``, a comparison that processes can share, and ``do_run``, which does one of its runs."""

from __future__ import annotations

import datetime
import json
import logging
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..._environment import describe_machine
from ..training.claim import ClaimLostError, RunClaim
from ..training.errors import WriteError
from ..training.randomness import seed_all
from .fairness import StartedRun, check_starts
from .metrics import RunMetrics
from .plan import Plan, RunKey
from .preparation import FairnessError, Prepare
from .records import RunRecord
from .store import RunStore

Run = Callable[[Prepare, int, float], RunMetrics | Mapping[str, Any]]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A comparison in its folder. It can be pickled if ``run`` can.

    Args:
        run: does one run, as :func:`compare` takes it.
        store: the comparison's folder, begun.
        former_failures: the files of runs that had failed before; these are repeated, once.
    """

    run: Run
    store: RunStore
    former_failures: Mapping[RunKey, tuple[str, int]] = field(default_factory=dict)

    @classmethod
    def begin(cls, run: Run, store: RunStore, *, resume: bool, overwrite: bool) -> Job:
        """Begin the comparison's folder; the runs that have failed so far are repeated."""
        store.begin(resume=resume, overwrite=overwrite)
        failed = [key for key, record in store.refresh().items() if not record.finished]
        return cls(run=run, store=store, former_failures={key: store.stamps[key] for key in failed})

    @property
    def plan(self) -> Plan:
        """What is compared."""
        return self.store.plan

    def started(self, record: RunRecord) -> StartedRun:
        """A finished run as the check of fairness takes it."""
        variant = json.dumps(self.plan.variants.get(record.key.arm), sort_keys=True)
        return StartedRun(self.store.folder(record.key), record, variant)

    def record(self, key: RunKey) -> RunRecord | None:
        """The run's record if nothing is left to do: it is finished, or has failed since the job began."""
        record = self.store.read(key)
        if record is None or record.finished or self.store.stamps[key] != self.former_failures.get(key):
            return record
        return None


def do_run(job: Job, key: RunKey) -> RunRecord | None:
    """Do one run, unless its record is there already, and write its record.

    Any number of processes, on any number of machines that see the folder, may call this with the same job and key.

    Returns:
        The record; None if another living process does this run, or has taken it over: ask again later.

    Raises:
        FairnessError: the comparison is invalid.
        ValueError, TypeError: what ``run`` returned is invalid, or a file of a run is.
        OSError: the run's folder cannot be written to, as on a full disk.
    """
    if (record := job.record(key)) is not None:
        return record
    claim = RunClaim(job.store.folder(key))
    if not claim.try_acquire():
        return None
    try:
        if (record := job.record(key)) is not None:  # it was finished between the look and the claim
            return record
        record = _run_once(job, key)
        claim.check()
        _check_fairness(record, job)
        job.store.write(record)
    except ClaimLostError:
        return None
    finally:
        claim.release()
    return record


def _run_once(job: Job, key: RunKey) -> RunRecord:
    """Do one run. An exception becomes a failed record, except those of the comparison, the claim and the disk.

    A full disk is no failure of an arm: the comparison stops, and is continued when there is space.
    """
    plan = job.plan
    prepare = Prepare(plan.arms[key.arm], plan.variants.get(key.arm, {}), job.store.folder(key))
    seed_all(key.seed)
    started, start = datetime.datetime.now(datetime.UTC).isoformat(), time.perf_counter()
    values: dict[str, Any]
    try:
        returned = job.run(prepare, key.seed, key.learning_rate)
    except (FairnessError, ClaimLostError, WriteError):
        raise
    except Exception as error:
        values = {"reason": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    else:
        metrics = RunMetrics.from_returned(returned, metric=plan.metric)
        values = {"reason": metrics.not_finite(), "metrics": metrics}
    if values["reason"] is not None:
        logger.warning("run %s failed: %s", key.stem, values["reason"])
    return RunRecord(
        key=key,
        description=plan.describe(key),
        status="finished" if values["reason"] is None else "failed",
        weights=prepare.weights,
        random_states=prepare.random_states,
        seconds=time.perf_counter() - start,
        started=started,
        environment=prepare.environment or describe_machine(),
        **values,
    )


def _check_fairness(record: RunRecord, job: Job) -> None:
    """Raise unless a finished run had the initial state of the other finished runs with its seed and variant."""
    if record.finished:
        keys = [key for key in job.plan.run_keys() if key.seed == record.key.seed and key != record.key]
        others = [other for key in keys if (other := job.store.read(key)) is not None and other.finished]
        check_starts(job.started(one) for one in (*others, record))
