import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_every_example_is_run():
    run = {"plain_loop.py", "timm_model.py", "hf_trainer.py", "context_parallel.py"}
    assert {path.name for path in EXAMPLES.glob("*.py")} == run


@pytest.mark.parametrize("name", ["plain_loop.py", "timm_model.py", "hf_trainer.py"])
def test_example_compares_fairly_and_reports(name, tmp_path):
    command = [sys.executable, str(EXAMPLES / name), "--seeds", "2", "--steps", "4", "--output", str(tmp_path / "out")]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert process.returncode == 0, process.stderr
    assert "Report: " in process.stdout
    results = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {run["status"] for run in results["runs"]} == {"finished"}
    assert list(results["arms"]) == ["plain", "row", "row-stopgrad"]
    runs = json.loads(gzip.decompress((tmp_path / "out" / "runs.json.gz").read_bytes()))
    losses = {run["arm"]: run["metrics"]["losses"] for run in runs if run["seed"] == 0}
    assert all(len(values) == 4 for values in losses.values())
    assert losses["plain"] != losses["row"] != losses["row-stopgrad"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "an example writes to its output folder only"


def test_processes_share_sequences(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(EXAMPLES / "context_parallel.py"), "--steps", "2", "--length", "32"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    process = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=240, check=False
    )
    assert process.returncode == 0, process.stderr
    assert "step   2  one process" in process.stdout
    assert "2 processes" in process.stdout
    assert not list(tmp_path.iterdir())
