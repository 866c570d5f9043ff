"""The function ``compare``: run every arm with every seed and learning rate, then report."""

from __future__ import annotations

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
from .scheduling.choice import choose_count, do_all
from .scheduling.processes import is_worker
from .scheduling.slice import check_slice, keys_of_slice
from .scheduling.together import is_launched, together
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
    ray_address: str | None = None,
    part: tuple[int, int] | None = None,
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
            Under torchrun all its processes do each run together.
        ray_address: of a Ray cluster whose nodes do the runs: ``"auto"``, ``"HOST:PORT"`` or ``"ray://HOST:PORT"``.
            Every node must see ``output``.
        part: which slice of the runs to do, from 1, and of how many, as in ``(1, 3)``; the jobs that do the others
            may use the same folder, or each its own.
        verbose: show progress, then the table and the path of the report.

    Returns:
        The comparison. If ``part`` is given and runs of other parts are not in ``output``, it holds what is there, and
        no report is written.

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
    keys = keys_of_slice(plan, None if part is None else check_slice(part))
    count = choose_count(workers, ray_address)
    store = RunStore(Path(output), plan, title=title)

    def lead() -> Comparison:
        job = Job.begin(run, store, resume=resume, overwrite=overwrite)
        do_all(job, keys, workers=count, ray_address=ray_address, verbose=verbose)
        return _report(job, only_whole=part is not None, verbose=verbose)

    return together(lead, Job(run=run, store=store)) if is_launched() else lead()


def _check_environment(run: object) -> None:
    """Check before the first run that ``run`` is a function, in one process, with the extra ``train`` installed."""
    if not callable(run):
        raise TypeError(f"run must be a function run(prepare, seed, learning_rate); got {type(run).__name__}")
    if is_worker():
        raise RuntimeError(
            "compare was called by a script that a worker process of another call imports; "
            'call it under `if __name__ == "__main__":`'
        )
    for module in ("scipy.stats", "matplotlib.figure", "jinja2", "rich.progress"):
        require(module, extra="train")


def _report(job: Job, *, only_whole: bool, verbose: bool) -> Comparison:
    """The comparison, as far as it is there; with ``only_whole`` its files are written if every run is."""
    store = job.store
    records = store.refresh()
    check_starts(job.started(record) for record in records.values() if record.finished)
    comparison = build_comparison(job.plan, records, title=store.title, output=store.output)
    left = sum(job.record(key) is None for key in job.plan.run_keys())
    if only_whole and left:
        if verbose:
            print(
                f"{left} of {left + len(records)} runs of the comparison are not in {store.output} yet. Whoever does "
                "the last of them there writes the report; the runs in several folders are joined by "
                f"`precond report {store.output} ...`"
            )
        return comparison
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
