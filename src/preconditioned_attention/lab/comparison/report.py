"""The result of a comparison, and the functions that write its files and print it."""

from __future__ import annotations

import dataclasses
import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..._files import write_atomically
from ..reporting import Page, print_table, render_html
from .figures import conditioning_by_layer, draw_figures
from .folder import PLAN, REPORT, RUNS, SUMMARY, written_files
from .machines import Machine, list_machines, merge_environments
from .metrics import MOMENTS, RunMetrics
from .page import build_page
from .plan import Plan, RunKey
from .records import RunRecord, to_json
from .summary import ArmSummary, chosen_runs, summarize
from .tables import results_table
from .verdict import Verdict, baseline_sentences, make_verdicts


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A finished comparison.

    Args:
        title: the report's title.
        output: the folder that holds everything.
        plan: what was compared.
        records: every run that has ended, failed ones included.
        summaries: the results of each arm.
        verdicts: the outcome of each arm in words.
        environment: versions, hardware, date; lists where the machines differ.
        machines: those that did the runs.
    """

    title: str
    output: Path
    plan: Plan
    records: Mapping[RunKey, RunRecord]
    summaries: Mapping[str, ArmSummary]
    verdicts: Mapping[str, Verdict]
    environment: Mapping[str, Any]
    machines: tuple[Machine, ...] = ()

    @property
    def report(self) -> Path:
        """The path of the HTML report."""
        return self.output / REPORT

    def chosen_runs(self) -> dict[str, tuple[RunMetrics, ...]]:
        """Each arm's runs at its chosen learning rate, in the order of the seeds."""
        return {name: chosen_runs(self.plan, self.records, name) for name in self.plan.arms}

    def records_in_order(self) -> list[RunRecord]:
        """The runs that have ended, in the plan's order."""
        return [self.records[key] for key in self.plan.run_keys() if key in self.records]

    def missing(self) -> list[RunKey]:
        """The runs that have not ended yet, in the plan's order."""
        return [key for key in self.plan.run_keys() if key not in self.records]

    def to_dict(self) -> dict[str, Any]:
        """What ``summary.json`` holds, as plain values: the plan, each arm's results, and each run's metrics."""
        return {
            "title": self.title,
            "metric": self.plan.metric,
            "higher_is_better": self.plan.higher_is_better,
            "seeds": list(self.plan.seeds),
            "learning_rates": list(self.plan.learning_rates),
            "settings": dict(self.plan.settings),
            "variants": {name: dict(options) for name, options in self.plan.variants.items()},
            "baselines": dict(self.plan.baselines),
            "environment": dict(self.environment),
            **({"machines": [machine.to_dict() for machine in self.machines]} if self.machines else {}),
            "arms": {name: self._arm_to_dict(name, runs) for name, runs in self.chosen_runs().items()},
            "runs": [_run_to_dict(record, SHORT) for record in self.records_in_order()],
            **({"missing": [dataclasses.asdict(key) for key in self.missing()]} if self.missing() else {}),
        }

    def _arm_to_dict(self, name: str, runs: Sequence[RunMetrics]) -> dict[str, Any]:
        summary, verdict = dataclasses.asdict(self.summaries[name]), self.verdicts[name]
        summary["rates"] = [rate.to_dict() for rate in self.summaries[name].rates]
        arm = self.plan.arms[name]
        summary = {"config": None if arm is None else arm.to_dict(), **summary}
        del summary["arm"], summary["missing"]  # the runs that are missing are listed once, for all arms
        conditioning = {moment: conditioning_by_layer(runs, moment) for moment in MOMENTS}
        outcome = {"outcome": verdict.outcome.name.lower(), "verdict": list(verdict.sentences)}
        return {**summary, **outcome, "conditioning": conditioning}

    def runs_to_list(self) -> list[dict[str, Any]]:
        """What ``runs.json.gz`` holds, as plain values: every number of every run."""
        return [_run_to_dict(record, METRICS) for record in self.records_in_order()]


METRICS = tuple(field.name for field in dataclasses.fields(RunMetrics) if field.name != "pictures")
SHORT = ("validation", "test", "seconds_per_step")


def _run_to_dict(record: RunRecord, metrics: Sequence[str]) -> dict[str, Any]:
    """A run with these of its metrics, without environment, and without traceback, which holds paths of the machine."""
    values = {name: value for name, value in record.to_dict().items() if name not in ("traceback", "environment")}
    description = values.pop("description")
    if values["started"] is None:
        del values["started"]
    if values["metrics"] is not None:
        values["metrics"] = {name: values["metrics"][name] for name in metrics}
    return {**{name: description[name] for name in ("arm", "seed", "learning_rate")}, **values}


def build_comparison(plan: Plan, records: Mapping[RunKey, RunRecord], *, title: str, output: Path) -> Comparison:
    """Summarize ``records``: the runs of ``plan`` that have ended."""
    summaries = summarize(plan, records)
    return Comparison(
        title=title,
        output=output,
        plan=plan,
        records=dict(records),
        summaries=summaries,
        verdicts=make_verdicts(plan, summaries),
        environment=merge_environments(records.values()),
        machines=list_machines(records.values()),
    )


def write_report(comparison: Comparison) -> None:
    """Write ``summary.json``, ``runs.json.gz``, the pictures and ``report.html``, which links the pictures.

    Files of an earlier report that are not written again are removed. Everything is computed from the files in
    ``runs/``: after a failed write, resume the comparison to write the report again.

    Raises:
        OSError: the folder cannot be written to; the runs themselves are on the disk already.
    """
    page = _build_page(comparison)
    runs = gzip.compress(to_json(comparison.runs_to_list(), indent=None).encode(), mtime=0)
    files: dict[str, str | bytes] = {SUMMARY: to_json(comparison.to_dict()), RUNS: runs}
    files |= {picture.file: picture.png for picture in page.pictures if picture.file is not None}
    files[REPORT] = render_html(page)
    for name, content in files.items():
        write_atomically(comparison.output / name, content)
    for path in written_files(comparison.output):
        if path.name not in (*files, PLAN):
            path.unlink()


def _build_page(comparison: Comparison) -> Page:
    plan, summaries, runs = comparison.plan, comparison.summaries, comparison.chosen_runs()
    return build_page(
        plan,
        summaries,
        comparison.verdicts,
        runs,
        draw_figures(plan, summaries, runs),
        title=comparison.title,
        environment=comparison.environment,
        machines=comparison.machines,
    )


def print_comparison(comparison: Comparison) -> None:
    """Print the table of results, the verdicts, and the path of the report."""
    print_table(results_table(comparison.plan, comparison.summaries))
    for verdict in comparison.verdicts.values():
        print(f"{verdict.arm}: {verdict.outcome.value}.", *verdict.sentences)
    for sentence in baseline_sentences(comparison.plan, comparison.summaries):
        print(sentence)
    missing = comparison.missing()
    if missing:
        count = "1 run has" if len(missing) == 1 else f"{len(missing)} runs have"
        print(f"{count} not ended yet: {', '.join(key.stem for key in missing)}")
    print(f"\nReport: {comparison.report}")
