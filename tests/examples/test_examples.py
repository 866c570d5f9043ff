import gzip
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from preconditioned_attention import equilibrate
from tests.helpers import torchtitan_protocol

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_every_example_is_run():
    run = {
        "plain_loop.py",
        "timm_model.py",
        "hf_trainer.py",
        "context_parallel.py",
        "fsdp2.py",
        "tensor_parallel.py",
        "torchtitan_converter.py",
    }
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


def run_with_torchrun(name, folder, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    process = subprocess.run(
        [*command, str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        timeout=240,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_processes_share_sequences(tmp_path):
    printed = run_with_torchrun("context_parallel.py", tmp_path, "--steps", "2", "--length", "32")
    assert "step   2  one process" in printed
    assert "2 processes" in printed
    assert not list(tmp_path.iterdir())


def test_fsdp2_trains_saves_and_goes_on(tmp_path):
    printed = run_with_torchrun("fsdp2.py", tmp_path, "--steps", "3", "--output", "checkpoint")
    first, last = map(float, printed.partition("2 processes, loss ")[2].partition(";")[0].split(" -> "))
    assert last < first
    assert (tmp_path / "checkpoint" / ".metadata").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_tensor_parallel_heads_compute_what_one_process_does(tmp_path):
    """The script compares the losses itself and fails if they differ."""
    printed = run_with_torchrun("tensor_parallel.py", tmp_path, "--steps", "3")
    assert "2 of 4 heads per process" in printed
    assert not list(tmp_path.iterdir())


@pytest.fixture
def converter(monkeypatch):
    """The example, beside a stand-in for the protocol of torchtitan 0.3.0."""
    for name, module in torchtitan_protocol.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location("torchtitan_converter", EXAMPLES / "torchtitan_converter.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_torchtitan_builds_preconditioned_attention_from_a_converted_config(converter):
    q = torch.randn(2, 6, 4, 8)
    for attention in converter.REPLACEMENTS:
        plain = attention(sharding_config="by heads")
        model = torchtitan_protocol.Model(layers=[torchtitan_protocol.Layer(inner_attention=plain) for _ in range(2)])
        expected = equilibrate(plain.build()(q, q, q))
        converted = converter.PreconditionConverter.Config(gradient="stop").build().convert(model)
        assert converted is model
        for layer in model.layers:
            assert (layer.inner_attention.sharding_config, layer.inner_attention.gradient) == ("by heads", "stop")
            torch.testing.assert_close(layer.inner_attention.build()(q, q, q), expected)


def test_torchtitan_models_without_known_attention_are_refused(converter):
    convert = converter.PreconditionConverter.Config().build().convert
    with pytest.raises(ValueError, match="must hold torchtitan's own inner attention"):
        convert(torchtitan_protocol.Model(layers=[]))
    model = torchtitan_protocol.Model(
        layers=[torchtitan_protocol.Layer(inner_attention=next(iter(converter.REPLACEMENTS))())]
    )
    with pytest.raises(ValueError, match="must hold torchtitan's own inner attention"):
        convert(convert(model))
