"""The outcome of a comparison and the files it is written to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..._environment import describe_environment
from ..._files import write_atomically
from ..reporting import print_table, render_html
from .figures import draw_figures
from .metrics import RunMetrics
from .page import build_page
from .plan import Plan, RunKey
from .records import PLOT_PREFIX, REPORT, RESULTS, RunRecord, to_json
from .summary import ArmSummary, chosen_runs, summarise
from .tables import results_table
from .verdict import Verdict, baseline_sentences, give_verdicts


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A finished comparison.

    Args:
        title: the report's title.
        output: the folder that holds everything.
        plan: what was compared.
        records: every run, failed ones included.
        summaries: what each arm achieved.
        verdicts: what may be said about each arm.
        environment: versions, hardware, date.
    """

    title: str
    output: Path
    plan: Plan
    records: Mapping[RunKey, RunRecord]
    summaries: Mapping[str, ArmSummary]
    verdicts: Mapping[str, Verdict]
    environment: Mapping[str, Any]

    @property
    def report(self) -> Path:
        """The path of the HTML report."""
        return self.output / REPORT

    def chosen_runs(self) -> dict[str, tuple[RunMetrics, ...]]:
        """Each arm's runs at its chosen learning rate, in the order of the seeds."""
        return {name: chosen_runs(self.plan, self.records, name) for name in self.plan.arms}

    def to_dict(self) -> dict[str, Any]:
        """Every number, as plain values: the content of ``results.json``."""
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
            "arms": {name: self._arm_to_dict(name) for name in self.plan.arms},
            "runs": [_run_to_dict(self.records[key]) for key in self.plan.run_keys()],
        }

    def _arm_to_dict(self, name: str) -> dict[str, Any]:
        summary, verdict = dataclasses.asdict(self.summaries[name]), self.verdicts[name]
        summary["rates"] = [{**dataclasses.asdict(rate), "mean": rate.mean} for rate in self.summaries[name].rates]
        arm = self.plan.arms[name]
        summary = {"config": None if arm is None else arm.to_dict(), **summary}
        del summary["arm"]
        return {**summary, "outcome": verdict.outcome.name.lower(), "verdict": list(verdict.sentences)}


def _run_to_dict(record: RunRecord) -> dict[str, Any]:
    """A run without its traceback (which names paths of the machine) and pictures: they stay in the run's own file."""
    values = record.to_dict()
    values.pop("traceback")
    (values["metrics"] or {}).pop("pictures", None)
    description = values.pop("description")
    return {**{name: description[name] for name in ("arm", "seed", "learning_rate")}, **values}


def build_comparison(plan: Plan, records: Mapping[RunKey, RunRecord], *, title: str, output: Path) -> Comparison:
    """Everything that can be said from ``records``, which hold every run of ``plan``."""
    summaries = summarise(plan, records)
    return Comparison(
        title=title,
        output=output,
        plan=plan,
        records=dict(records),
        summaries=summaries,
        verdicts=give_verdicts(plan, summaries),
        environment=describe_environment(),
    )


def write_report(comparison: Comparison) -> None:
    """Write ``results.json``, the plots and ``report.html`` (which embeds the plots).

    Everything is made from the runs' files, so a failed write loses nothing: resume the comparison to write again.

    Raises:
        OSError: the folder cannot be written to; the runs themselves are on the disk already.
    """
    write_atomically(comparison.output / RESULTS, to_json(comparison.to_dict()))
    runs = comparison.chosen_runs()
    pictures = draw_figures(comparison.plan, comparison.summaries, runs)
    for name, picture in pictures.items():
        (comparison.output / f"{PLOT_PREFIX}{name}.png").write_bytes(picture.png)
    page = build_page(
        comparison.plan,
        comparison.summaries,
        comparison.verdicts,
        runs,
        pictures,
        title=comparison.title,
        environment=comparison.environment,
    )
    write_atomically(comparison.report, render_html(page))


def print_comparison(comparison: Comparison) -> None:
    """Print the table, the words, and the path of the report."""
    print_table(results_table(comparison.plan, comparison.summaries))
    for verdict in comparison.verdicts.values():
        print(f"{verdict.arm}: {verdict.outcome.value}.", *verdict.sentences)
    for sentence in baseline_sentences(comparison.plan, comparison.summaries):
        print(sentence)
    print(f"\nReport: {comparison.report}")
