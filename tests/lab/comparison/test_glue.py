import json
from pathlib import Path

import pytest

from preconditioned_attention.lab.comparison.glue import glue_table, score_glue
from preconditioned_attention.lab.tasks.masked_lm import MaskedLM
from preconditioned_attention.lab.training import TrainConfig, train
from tests.helpers.claim_holder import holding
from tests.helpers.glue_tree import write_release

SIZES = {"vocab_size": 300, "context": 64, "width": 8, "layers": 1, "num_heads": 1, "feed_forward": 8}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_release(tmp_path / "data")
    task = MaskedLM(**SIZES)
    task.export(task.build_model(), tmp_path / "model")
    return tmp_path


def test_a_tiny_tree_from_end_to_end(folder: Path) -> None:
    options = {"root": folder / "data", "output": folder / "runs", "progress": False}
    scores = score_glue(folder / "model", trials=1, **options)
    assert [score.task for score in scores] == [
        *("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "mnli, mismatched", "qnli", "rte")
    ]
    assert [score.metric for score in scores] == [
        *("matthews", "accuracy", "f1", "pearson", "f1", "accuracy", "accuracy", "accuracy", "accuracy")
    ]
    table = glue_table(scores)
    mean = sum(score.median for score in scores) / 9
    assert table.rows[-1][:3] == ("mean of the medians", "", f"{100 * mean:.1f}")
    assert table.note == ""


def test_the_median_of_trials_that_go_on(folder: Path) -> None:
    options = {"root": folder / "data", "output": folder / "runs", "progress": False, "tasks": ["rte", "stsb"]}
    first = score_glue(folder / "model", trials=2, **options)
    before = (folder / "runs" / "rte-seed1" / "result.json").stat().st_mtime_ns
    scores = score_glue(folder / "model", trials=3, **options)
    assert [score.trials[:2] for score in scores] == [score.trials for score in first]
    assert (folder / "runs" / "rte-seed1" / "result.json").stat().st_mtime_ns == before
    assert not (folder / "runs" / "rte-seed1" / "checkpoints").exists()
    assert [score.median for score in scores] == [sorted(score.trials)[1] for score in scores]
    written = json.loads((folder / "runs" / "glue.json").read_text())
    assert written["stsb"]["trials"] == list(scores[1].trials)
    assert "not the score on GLUE" in glue_table(scores).note
    config = TrainConfig.from_yaml((folder / "runs" / "rte-seed2" / "config.yaml").read_text())
    assert (config.seed, config.steps, config.warmup_steps) == (2, 10, 0)  # 40 pairs: five epochs of two batches
    with pytest.raises(ValueError, match=r"another configuration: task_options\.pretrained was"):
        score_glue(folder / "other", trials=1, **options)


def test_trials_of_another_process_are_left_to_it_and_taken_over_when_it_dies(folder: Path) -> None:
    claimed, order = folder / "runs" / "rte-seed0", []
    with holding(claimed) as other:

        def watching(config: TrainConfig, output: Path, **options: object) -> object:
            order.append(output.name)
            if len(order) == 1:
                other.kill()
                other.wait()
            return train(config, output, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("preconditioned_attention.lab.comparison.glue.train", watching)
            options = {"root": folder / "data", "output": folder / "runs", "progress": False, "tasks": ["rte"]}
            (score,) = score_glue(folder / "model", trials=2, **options)
    assert order == ["rte-seed1", "rte-seed0"]
    assert len(score.trials) == 2


def test_a_trial_whose_result_is_damaged_is_named(folder: Path) -> None:
    options = {"root": folder / "data", "output": folder / "runs", "progress": False, "tasks": ["rte"], "trials": 1}
    score_glue(folder / "model", **options)
    (folder / "runs" / "rte-seed0" / "result.json").write_text("{}")
    with pytest.raises(ValueError, match=r"rte-seed0/result\.json must hold accuracy"):
        score_glue(folder / "model", **options)


def test_too_few_pairs(folder: Path) -> None:
    path = folder / "data" / "RTE" / "train.tsv"
    path.write_text("\n".join(path.read_text().splitlines()[:9]) + "\n")
    with pytest.raises(ValueError, match="must have at least 16 training pairs; got 8"):
        score_glue(folder / "model", root=folder / "data", output=folder / "runs", tasks=["rte"], progress=False)
