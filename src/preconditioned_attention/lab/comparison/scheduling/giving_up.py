"""``record_failure``: a failed record for a run whose processes died."""

from __future__ import annotations

from ...training.claim import RunClaim
from ..job import Job
from ..plan import RunKey
from ..records import RunRecord


def record_failure(job: Job, key: RunKey, reason: str) -> bool:
    """Record that a run has failed, unless it has a record; False if a living process is doing it."""
    claim = RunClaim(job.store.folder(key))
    if not claim.try_acquire():
        return False
    try:
        if job.record(key) is None:
            description = job.plan.describe(key)
            job.store.write(RunRecord(key=key, description=description, status="failed", reason=reason, seconds=0.0))
    finally:
        claim.release()
    return True
