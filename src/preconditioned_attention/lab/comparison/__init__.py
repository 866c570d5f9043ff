"""Comparisons: train with and without preconditioning over seeds and learning rates, and report the differences."""

from .combine import report_runs
from .engine import compare
from .metrics import RunMetrics
from .plan import Plan, RunKey
from .preparation import FairnessError, Prepare
from .report import Comparison
from .summary import ArmSummary
from .task_run import task_run, task_settings
from .verdict import Outcome, Verdict

__all__ = [
    "ArmSummary",
    "Comparison",
    "FairnessError",
    "Outcome",
    "Plan",
    "Prepare",
    "RunKey",
    "RunMetrics",
    "Verdict",
    "compare",
    "report_runs",
    "task_run",
    "task_settings",
]
