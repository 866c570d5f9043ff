from pathlib import Path

import pytest
import torch

from preconditioned_attention.cli import main
from preconditioned_attention.conversion import from_pretrained
from preconditioned_attention.lab.training import load_trained

transformers = pytest.importorskip("transformers")

RECIPE = """
train:
  task: causal-lm
  task_options: {vocab_size: 300, context: 16, n_layer: 1, n_head: 2, n_embd: 8}
  steps: 2
  batch_size: 4
  learning_rate: 1e-3
compare: {seeds: [0, 1, 2], learning_rates: [1e-3]}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    path = folder / "small.yaml"
    path.write_text(RECIPE)
    assert main(["train", str(path), "--arm", "row", "--output", str(folder / "run")]) == 0
    return folder / "run"


def test_a_run_becomes_a_folder_of_transformers(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), "--output", str(tmp_path / "model")]) == 0
    task, model = load_trained(run)
    loaded = from_pretrained(transformers.AutoModelForCausalLM, tmp_path / "model").eval()
    batch = task.example_batch(2)
    assert torch.equal(loaded(*batch).logits, model(*batch).logits)
    assert transformers.AutoTokenizer.from_pretrained(str(tmp_path / "model")).eos_token == "<|endoftext|>"


def test_errors_are_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in [
        ([str(run), "--output", str(run)], "must be an empty folder or not exist"),
        ([str(tmp_path), "--output", str(tmp_path / "model")], "holds no finished run"),
    ]:
        capsys.readouterr()
        assert main(["export", *arguments]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1
    assert not (tmp_path / "model").exists()
