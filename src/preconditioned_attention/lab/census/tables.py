"""The findings of a sweep as two tables: how many of each outcome, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import get_args

from ..reporting import Table
from .sweep import Finding, Outcome

_OUTCOMES: tuple[str, ...] = get_args(Outcome)


def count_table(findings: Iterable[Finding]) -> Table:
    """A line for everything that is counted."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for finding in findings:
        counts.setdefault((finding.library, finding.what), Counter())[finding.outcome] += 1
    return Table(
        title="What was converted",
        columns=("library", "what", "all", *_OUTCOMES),
        rows=tuple(
            (*key, str(own.total()), *(str(own[outcome]) for outcome in _OUTCOMES)) for key, own in counts.items()
        ),
        text_columns=2,
    )


def reason_table(findings: Iterable[Finding]) -> Table:
    """Why attention was not converted exactly; one line per reason, and one per finding that is unknown or failed."""
    alike: dict[tuple[str, str, str], list[str]] = {}
    for finding in findings:
        if finding.reason:
            own_line = f" ({finding.name})" if finding.outcome in ("unknown", "failed") else ""
            key = (finding.library, finding.outcome, finding.reason + own_line)
            alike.setdefault(key, []).append(finding.name)
    return Table(
        title="Definitions and reasons",
        columns=("library", "outcome", "reason", "number", "for example"),
        rows=tuple((*key, str(len(names)), names[0]) for key, names in alike.items()),
        text_columns=3,
    )
