"""The function ``compare``: run every arm with every seed and learning rate, then report."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..._extras import require
from ...config import PreconditionConfig
from ..training.arms import ARMS, Arm
from .fairness import check_starts
from .job import Job, Run
from .plan import Plan
from .report import Comparison, build_comparison, print_comparison, write_report
from .scheduling.capacity import choose_workers
from .scheduling.choice import do_all
from .scheduling.processes import is_worker
from .store import RunStore, claimed


def compare(
    run: Run,
    *,
    learning_rates: Sequence[float],
    output: Path | str,
    arms: Mapping[str, Arm | PreconditionConfig | None] = ARMS,
    seeds: Sequence[int] = (0, 1, 2),
    metric: str = "accuracy",
    higher_is_better: bool = True,
    title: str = "Comparison",
    settings: Mapping[str, Any] | None = None,
    variants: Mapping[str, Mapping[str, Any]] | None = None,
    baselines: Mapping[str, float] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    workers: int | None = 1,
    verbose: bool = True,
) -> Comparison:
    """Train with every arm, seed and learning rate, and report each arm's difference to ``"plain"`` in the test metric.

    Before each run Python's, NumPy's and torch's generators are seeded from the seed, so a ``run`` that builds its
    model from them gives every arm the same weights; this is checked. Each arm's learning rate is the one with the
    best mean validation metric over seeds; the test metric is reported at that rate and selects nothing. A run that
    raises, or reports numbers that are not finite, is recorded as failed and listed in the report.

    Args:
        run: ``run(prepare, seed, learning_rate)`` builds a new model, calls ``prepare(model)`` before it makes the
            optimizer, trains, and returns :class:`RunMetrics` or a mapping with ``"validation"`` and ``"test"``.
        learning_rates: the grid, the same for every arm; at least three show whether it is wide enough.
        output: the folder for the runs (a folder each in ``runs/``, which ``run`` finds as ``prepare.folder``),
            ``summary.json``, ``runs.json.gz``, ``report.html`` and its pictures.
        arms: name to config, or to an :class:`Arm` with a selection of its own; must hold ``"plain"``: None.
        seeds: two or more give intervals; with two they are very wide.
        metric: the name of the metric that ``validation`` and ``test`` hold.
        higher_is_better: False for a loss or an error.
        title: the report's title.
        settings: everything else that determines the result (model, data, steps): shown in the report, and compared
            when a comparison is resumed.
        variants: for arms with another model, the options that ``run`` gets as ``prepare.options``. Initial weights
            are required to be equal among arms with the same options only.
        baselines: the test metric of predictors without a model, by name; shown next to the results.
        resume: keep the finished runs of an earlier call of the same comparison, or of one that goes on at the same
            time; failed ones are repeated.
        overwrite: remove the results in ``output``.
        workers: how many processes share the runs; 1 is this process alone, None chooses from the cores, the memory
            and the GPUs of this machine. For more than one, ``run`` must be at the top level of a module, and a script
            must call this function under ``if __name__ == "__main__":``.
        verbose: show progress, then the table and the path of the report.

    Raises:
        FairnessError: runs of one seed had different initial weights or random states, or never called ``prepare``.
        RuntimeError: every run failed; the report is written first.
        ValueError, TypeError: an argument, or what ``run`` returned, is invalid; earlier runs are kept.
        FileExistsError: ``output`` holds other results. OSError: it cannot be written to.
        ImportError: the extra ``train`` is missing (before anything runs).
    """
    plan = Plan(
        _as_arms(arms), seeds, learning_rates, metric, higher_is_better, settings or {}, variants or {}, baselines or {}
    )
    _check_environment(run)
    workers = choose_workers(workers)
    job = Job.begin(run, RunStore(Path(output), plan, title=title), resume=resume, overwrite=overwrite)
    do_all(job, list(plan.run_keys()), workers=workers, verbose=verbose)
    return _report(job, verbose=verbose)


def _check_environment(run: object) -> None:
    """Check before the first run that ``run`` is a function, in one process, with the extra ``train`` installed."""
    if not callable(run):
        raise TypeError(f"run must be a function run(prepare, seed, learning_rate); got {type(run).__name__}")
    if is_worker():
        raise RuntimeError(
            "compare was called by a script that a worker process of another call imports; "
            'call it under `if __name__ == "__main__":`'
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("compare runs in one process, because it writes one folder; start it without torchrun")
    for module in ("scipy.stats", "matplotlib.figure", "jinja2", "rich.progress"):
        require(module, extra="train")


def _report(job: Job, *, verbose: bool) -> Comparison:
    store = job.store
    records = store.refresh()
    check_starts(job.started(record) for record in records.values() if record.finished)
    comparison = build_comparison(job.plan, records, title=store.title, output=store.output)
    with claimed(store.output):
        write_report(comparison)
    if verbose:
        print_comparison(comparison)
    failures = [record for record in records.values() if not record.finished]
    if len(failures) == len(records):
        raise RuntimeError(f"every run failed, the first with: {failures[0].reason}. See {comparison.report}")
    return comparison


def _as_arms(arms: Any) -> Any:
    """Each config as an arm; the plan checks the rest."""
    if not isinstance(arms, Mapping):
        return arms
    return {name: Arm(arm) if isinstance(arm, PreconditionConfig) else arm for name, arm in arms.items()}
