import gzip
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from preconditioned_attention import precondition_
from preconditioned_attention.lab.comparison import FairnessError, Outcome, Prepare, RunKey, compare
from tests.helpers.synthetic_runs import ARMS, arm_of, run, tiny_model

RATES = (1e-4, 1e-3, 1e-2)


def quietly(chosen_run, output: Path, **options):
    return compare(chosen_run, **{"output": output, "learning_rates": RATES, "verbose": False} | options)


def test_from_runs_to_words(tmp_path):
    comparison = quietly(run, tmp_path)
    assert [verdict.outcome for verdict in comparison.verdicts.values()] == [
        Outcome.REFERENCE,
        Outcome.BETTER,
        Outcome.INCONCLUSIVE,
    ]
    assert {summary.learning_rate for summary in comparison.summaries.values()} == {1e-3}
    assert comparison.summaries["row"].difference.values == pytest.approx((0.02, 0.021, 0.022))
    assert comparison.summaries["row"].time_ratio.mean == pytest.approx(2.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [
            "runs",
            "comparison.json",
            "summary.json",
            "runs.json.gz",
            "report.html",
            "plot-difference.png",
            "plot-training-loss.png",
            "plot-validation.png",
        ]
        + [f"plot-{what}-{moment}.png" for what in ("kappa", "spread") for moment in ("initialization", "end")]
    )


def test_order_seeds_then_rates_then_arms_and_each_run_is_on_disk_before_the_next(tmp_path):
    seen = []

    def watching(prepare: Prepare, seed: int, learning_rate: float):
        assert len(list((tmp_path / "runs").glob("*/run.json"))) == len(seen)
        seen.append((seed, learning_rate, arm_of(prepare)))
        return run(prepare, seed, learning_rate)

    quietly(watching, tmp_path, seeds=(1, 0), learning_rates=(1e-2, 1e-3))
    assert seen == [(seed, rate, arm) for seed in (1, 0) for rate in (1e-3, 1e-2) for arm in ARMS]


def test_every_generator_is_seeded_before_each_run(tmp_path):
    import random

    import numpy as np

    drawn = {}

    def drawing(prepare: Prepare, seed: int, learning_rate: float):
        metrics = run(prepare, seed, learning_rate)
        numbers = (random.random(), float(np.random.random()), torch.rand(()).item())
        drawn.setdefault(seed, set()).add(numbers)
        return metrics

    quietly(drawing, tmp_path)
    assert [len(numbers) for numbers in drawn.values()] == [1, 1, 1]
    assert len(set.union(*drawn.values())) == 3


def test_arms_are_applied(tmp_path):
    modes = []

    def looking(prepare: Prepare, seed: int, learning_rate: float):
        model = prepare(tiny_model())
        modes.append([module.config.gradient for module in model.modules() if hasattr(module, "config")])
        return {"validation": seed, "test": seed}

    quietly(looking, tmp_path, seeds=(0,), learning_rates=(1.0,))
    assert modes == [[], ["full"], ["stop"]]


def test_unequal_weights_stop_the_comparison(tmp_path):
    generator = torch.Generator().manual_seed(0)

    def unseeded(prepare: Prepare, seed: int, learning_rate: float):
        model = tiny_model()
        with torch.no_grad():
            model.linear1.weight.normal_(generator=generator)
        prepare(model)
        return {"validation": 1.0, "test": 1.0}

    with pytest.raises(FairnessError, match=r"plain-seed0-lr0\.0001 and row-seed0-lr0\.0001 had different"):
        quietly(unseeded, tmp_path)


def test_weights_changed_before_prepare_are_noticed(tmp_path):
    def converts_by_itself(prepare: Prepare, seed: int, learning_rate: float):
        model = tiny_model()
        if arm_of(prepare) == "row-stopgrad":
            torch.nn.init.zeros_(model.linear1.bias)
        prepare(model)
        return {"validation": 1.0, "test": 1.0}

    with pytest.raises(FairnessError, match="row-stopgrad"):
        quietly(converts_by_itself, tmp_path)


def test_unequal_random_states_stop_the_comparison(tmp_path):
    def draws_more_in_one_arm(prepare: Prepare, seed: int, learning_rate: float):
        model = tiny_model()
        if arm_of(prepare) == "row":
            torch.rand(1)
        prepare(model)
        return {"validation": 1.0, "test": 1.0}

    with pytest.raises(FairnessError, match="different random states"):
        quietly(draws_more_in_one_arm, tmp_path)


def test_a_run_that_never_prepares_stops_the_comparison(tmp_path):
    with pytest.raises(FairnessError, match=r"never called prepare\(model\)"):
        quietly(lambda prepare, seed, rate: {"validation": 1.0, "test": 1.0}, tmp_path)
    assert list((tmp_path / "runs").glob("*/run.json")) == []


def test_fairness_holds_across_a_resume(tmp_path):
    def interrupted(prepare: Prepare, seed: int, learning_rate: float):
        if arm_of(prepare) == "row":
            raise KeyboardInterrupt
        return run(prepare, seed, learning_rate)

    def other_model(prepare: Prepare, seed: int, learning_rate: float):
        prepare(torch.nn.TransformerEncoderLayer(16, 2, 8, batch_first=True))
        return run(Prepare(prepare.arm), seed, learning_rate)

    with pytest.raises(KeyboardInterrupt):
        quietly(interrupted, tmp_path)
    with pytest.raises(FairnessError, match="different initial weights"):
        quietly(other_model, tmp_path, resume=True)


def test_a_variant_may_start_elsewhere_and_knows_its_options(tmp_path):
    def other_model(prepare: Prepare, seed: int, learning_rate: float):
        if prepare.options:
            assert prepare.options == {"depth": 2}
            prepare(torch.nn.Sequential(tiny_model(), torch.nn.Linear(2, len(arm_of(prepare)))))
            return {"validation": 0.5, "test": 0.25}
        return run(prepare, seed, learning_rate)

    variants = {"deep": {"depth": 2}}
    arms = {**ARMS, "deep": None}
    comparison = quietly(other_model, tmp_path, arms=arms, variants=variants, baselines={"majority": 0.125})
    assert comparison.summaries["deep"].test == (0.25, 0.25, 0.25)
    assert "deep: another model" in comparison.report.read_text()
    results = json.loads((tmp_path / "summary.json").read_text())
    assert (results["variants"], results["baselines"]) == (variants, {"majority": 0.125})
    with pytest.raises(FairnessError, match="different initial weights"):
        quietly(other_model, tmp_path / "strict", arms=arms, variants={"row": {"depth": 2}, "deep": {"depth": 2}})


def test_a_run_that_raises_is_kept_as_failed_with_its_reason(tmp_path, caplog):
    def fails_once(prepare: Prepare, seed: int, learning_rate: float):
        if (arm_of(prepare), seed, learning_rate) == ("row", 1, 1e-3):
            raise ArithmeticError("loss is nan at step 7")
        return run(prepare, seed, learning_rate)

    with caplog.at_level(logging.WARNING):
        comparison = quietly(fails_once, tmp_path)
    assert "row-seed1-lr0.001 failed: ArithmeticError: loss is nan at step 7" in caplog.text
    record = json.loads((tmp_path / "runs" / "row-seed1-lr0.001" / "run.json").read_text())
    assert record["status"] == "failed"
    assert "fails_once" in record["traceback"]
    assert comparison.summaries["row"].learning_rate == 1e-4
    assert "loss is nan at step 7" in comparison.report.read_text()
    assert "Traceback" not in (tmp_path / "summary.json").read_text()
    assert b"Traceback" not in gzip.decompress((tmp_path / "runs.json.gz").read_bytes())


def test_numbers_that_are_not_finite_are_a_failure(tmp_path):
    def diverges(prepare: Prepare, seed: int, learning_rate: float):
        metrics = run(prepare, seed, learning_rate)
        return metrics | {"validation": float("nan")} if arm_of(prepare) == "row-stopgrad" else metrics

    comparison = quietly(diverges, tmp_path)
    assert comparison.verdicts["row-stopgrad"].outcome is Outcome.FAILED
    assert len(comparison.summaries["row-stopgrad"].failures) == 9
    assert "validation is nan" in comparison.report.read_text()
    assert comparison.verdicts["row"].outcome is Outcome.BETTER


def test_a_refused_conversion_fails_the_arm_and_not_the_reference(tmp_path):
    def converted_already(prepare: Prepare, seed: int, learning_rate: float):
        model = tiny_model()
        if arm_of(prepare) == "plain":
            return run(prepare, seed, learning_rate)
        precondition_(model)
        prepare(model)
        return {"validation": 1.0, "test": 1.0}

    comparison = quietly(converted_already, tmp_path)
    assert [verdict.outcome for verdict in comparison.verdicts.values()] == [Outcome.REFERENCE, *[Outcome.FAILED] * 2]
    assert "ValueError" in comparison.summaries["row"].failures[0].reason


def test_when_every_run_fails_the_report_is_written_and_the_error_names_the_first_reason(tmp_path):
    def broken(prepare: Prepare, seed: int, learning_rate: float):
        raise LookupError("no such data")

    with pytest.raises(RuntimeError, match=r"every run failed.*LookupError: no such data.*report\.html"):
        quietly(broken, tmp_path)
    assert "no such data" in (tmp_path / "report.html").read_text()


def test_resume_does_only_what_is_left_and_repeats_failures(tmp_path):
    calls = []

    def counting(prepare: Prepare, seed: int, learning_rate: float):
        calls.append(RunKey(seed, learning_rate, arm_of(prepare)))
        if len(calls) == 5:
            raise KeyboardInterrupt
        if len(calls) == 2:
            raise MemoryError("out of memory")
        return run(prepare, seed, learning_rate)

    with pytest.raises(KeyboardInterrupt):
        quietly(counting, tmp_path, seeds=(0, 1))
    failed, interrupted = calls[1], calls[4]
    first = list(calls)
    comparison = quietly(counting, tmp_path, seeds=(0, 1), resume=True)
    again = calls[5:]
    assert set(first) & set(again) == {failed, interrupted}
    assert len(set(calls)) == 18
    assert all(record.finished for record in comparison.records.values())
    fresh = quietly(run, tmp_path / "fresh", seeds=(0, 1))
    assert comparison.summaries == fresh.summaries
    assert comparison.verdicts == fresh.verdicts


def test_a_killed_comparison_resumes(tmp_path):
    script = textwrap.dedent(
        """
        import os, signal, sys
        from preconditioned_attention.lab.comparison import compare
        from tests.helpers.synthetic_runs import run

        calls = 0

        def killed(prepare, seed, learning_rate):
            global calls
            calls += 1
            if calls == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            return run(prepare, seed, learning_rate)

        compare(killed, learning_rates=(1e-4, 1e-3, 1e-2), output=sys.argv[1], verbose=False)
        """
    )
    paths = [str(Path(__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    process = subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=environment, check=False)
    assert process.returncode == -signal.SIGKILL
    assert len(list((tmp_path / "runs").glob("*/run.json"))) == 3
    assert len(quietly(run, tmp_path, resume=True).records) == 27


def test_a_finished_comparison_resumes_without_running(tmp_path):
    first = quietly(run, tmp_path)

    def never(prepare: Prepare, seed: int, learning_rate: float):
        raise AssertionError("it ran")

    (tmp_path / "report.html").unlink()
    again = quietly(never, tmp_path, resume=True)
    assert again.summaries == first.summaries
    assert again.report.exists()


def test_results_are_not_overwritten_unasked(tmp_path):
    quietly(run, tmp_path)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        quietly(run, tmp_path)
    assert len(quietly(run, tmp_path, seeds=(5, 6), overwrite=True).records) == 18


def test_an_unwritable_folder_is_an_error_before_the_first_run(tmp_path):
    (tmp_path / "file").write_text("x")

    def never(prepare: Prepare, seed: int, learning_rate: float):
        raise AssertionError("it ran")

    with pytest.raises(OSError, match="output"):
        quietly(never, tmp_path / "file" / "below")


@pytest.mark.parametrize(("returned", "error"), [(None, TypeError), ({"test": 1.0}, ValueError)])
def test_a_run_that_reports_nothing_usable_is_an_error_at_once(tmp_path, returned, error):
    calls = []

    def useless(prepare: Prepare, seed: int, learning_rate: float):
        calls.append(prepare(tiny_model()))
        return returned

    with pytest.raises(error, match="run must return"):
        quietly(useless, tmp_path)
    assert len(calls) == 1


def test_run_must_be_a_function(tmp_path):
    with pytest.raises(TypeError, match="run must be a function"):
        quietly("run", tmp_path)


def test_a_missing_extra_is_named_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"preconditioned-attention\[train\]"):
        quietly(run, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_number_of_processes_without_a_launcher_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match=r"WORLD_SIZE=2 .* were launched, but RANK.* not set; .*torchrun"):
        quietly(run, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_terminal_shows_table_words_and_path(tmp_path, capsys):
    comparison = quietly(run, tmp_path, verbose=True)
    shown = capsys.readouterr().out
    assert "row: better." in shown
    assert comparison.verdicts["row-stopgrad"].sentences[0] in shown
    assert f"Report: {tmp_path / 'report.html'}" in shown


def test_importing_the_room_needs_torch_only():
    script = textwrap.dedent(
        """
        import sys
        import preconditioned_attention.lab.comparison
        heavy = {"accelerate", "timm", "matplotlib", "transformers", "torchvision", "scipy", "jinja2", "rich"}
        print(sorted(heavy & set(sys.modules)))
        """
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"
