"""A comparison that torchrun's processes do together: ``python -m tests.helpers.together_worker OUTPUT``."""

import os
import sys
from pathlib import Path

import torch.distributed as dist

from preconditioned_attention.lab.comparison import compare
from tests.helpers.scheduled_runs import PLAN, logged


def run(prepare, seed, learning_rate):
    metrics = logged(prepare, seed, learning_rate)
    if os.environ["RANK"] == "1" and prepare.folder.name == "row-seed1-lr0.0001":
        raise LookupError("no such data")
    return metrics


if __name__ == "__main__":
    comparison = compare(run, output=Path(sys.argv[1]), **PLAN)
    failures = comparison.summaries["row"].failures
    print(f"\nprocess {os.environ['RANK']}: {len(comparison.records)} records, {[each.reason for each in failures]}")
    dist.destroy_process_group()  # without it gloo's threads may abort the process as it ends
