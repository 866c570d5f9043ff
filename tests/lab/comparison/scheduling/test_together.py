import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from preconditioned_attention.lab.comparison import compare
from tests.helpers.comparison_results import results_without_times
from tests.helpers.scheduled_runs import PLAN, log, logged

ROOT = Path(__file__).resolve().parents[4]
LIMIT_S = 300


def torchrun(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "ACCELERATE_USE_CPU": "1"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0
    )
    try:
        output, errors = process.communicate(timeout=LIMIT_S)
    finally:
        os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def test_all_processes_do_every_run_and_the_main_one_writes(tmp_path):
    done = torchrun("--no-python", sys.executable, "-m", "tests.helpers.together_worker", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    for process in (0, 1):  # an error of one process is the run's, and both return the comparison
        assert f"process {process}: 12 records, ['LookupError: no such data']" in done.stdout
    lines = log(tmp_path / "two")
    assert len(lines) == 24
    assert len({line["process"] for line in lines}) == 2
    assert done.stdout.count("Report: ") == 1
    compare(logged, output=tmp_path / "one", verbose=False, **PLAN)
    two, one = (results_without_times(tmp_path / name)["runs"] for name in ("two", "one"))
    assert [run for run in two if run["status"] == "finished"] == [
        run for run in one if (run["arm"], run["seed"], run["learning_rate"]) != ("row", 1, 1e-4)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--fsdp"]], ids=["ddp", "fsdp"])
def test_a_recipe_on_two_processes_has_the_results_of_one(tmp_path, options):
    recipe = ["compare", "digits", "--steps", "6", "--seeds", "0", "--learning-rates", "1e-3", "--arms", "plain", "row"]
    done = torchrun("-m", "preconditioned_attention", *recipe, *options, "--output", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    alone = [sys.executable, "-m", "preconditioned_attention", *recipe, "--workers", "1", "--output", tmp_path / "one"]
    subprocess.run(alone, check=True, timeout=LIMIT_S, cwd=ROOT)
    for stem in ("plain-seed0-lr0.001", "row-seed0-lr0.001"):
        two, one = (json.loads((tmp_path / name / "runs" / stem / "run.json").read_text()) for name in ("two", "one"))
        assert two["weights"] == one["weights"]
        assert two["metrics"]["losses"] == pytest.approx(one["metrics"]["losses"], abs=0.2)  # other dropout masks
        assert [row["moment"] for row in two["metrics"]["conditioning"]].count("end") == 3
