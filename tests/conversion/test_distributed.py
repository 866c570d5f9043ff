"""Converted models on several processes, connected by gloo: they compute and train as one process does."""

from pathlib import Path

import pytest
import torch

from preconditioned_attention import precondition_
from tests.helpers import parallel_checks as checks
from tests.helpers.parallel_models import CONFIGS, FORMS, new_model, train
from tests.helpers.processes import run_in_processes

slow = pytest.mark.slow
ALL = list(FORMS)


def test_sharded_data_parallel() -> None:
    run_in_processes(2, checks.trains_as_one_process, "FSDP2", ["torch encoder", "timm ViT, hooks", "Llama"])


@slow
@pytest.mark.parametrize("wrap", checks.WRAPS)
def test_data_parallel(wrap: str) -> None:
    run_in_processes(2, checks.trains_as_one_process, wrap, ALL, timeout=500)


@slow
@pytest.mark.parametrize("wrap", ["DDP", "FSDP2"])
def test_in_float32(wrap: str) -> None:
    run_in_processes(2, checks.trains_as_one_process, wrap, ALL, torch.float32, timeout=500)


@slow
@pytest.mark.parametrize("wrap", checks.HALF)
def test_mixed_precision(wrap: str) -> None:
    forms = [form for form in ALL if form not in ("timm ViT, hooks", "timm Swin")]  # plain, too, they mix dtypes there
    run_in_processes(2, checks.trains_in_mixed_precision, wrap, forms, timeout=500)


def _small_checks(rank: int) -> None:
    checks.refuses_a_gain_afterwards(rank)
    checks.notices_plain_weights(rank)
    checks.trains_with_shared_out_heads(rank)
    checks.refuses_a_whole_gain_for_some_heads(rank)
    checks.shares_out_the_sequence_between_blocks(rank)
    checks.computes_in_stages_by_hand(rank)


def test_gains_heads_sequences_and_stages() -> None:
    """One start of two processes for all of these."""
    run_in_processes(2, _small_checks)


@slow
def test_the_tensor_parallel_plan_of_transformers(tmp_path: Path) -> None:
    run_in_processes(2, checks.follows_the_plan_of_transformers, tmp_path)


@slow
def test_heads_and_samples() -> None:
    run_in_processes(4, checks.shares_out_heads_and_samples)


@slow
def test_a_traced_pipeline() -> None:
    forms = [form for form in ALL if form != "timm ViT, hooks"]  # gloo does not send what its plain stages return
    run_in_processes(2, checks.computes_in_a_pipeline, forms, timeout=500)


@slow
@pytest.mark.parametrize("form", ["torch encoder", "Llama"])
def test_a_checkpoint_of_two_processes_goes_on_on_four_and_on_one(form: str, tmp_path: Path) -> None:
    alone = new_model(form)
    precondition_(alone, CONFIGS["stop with a gain"])
    expected = train(alone, checks.batches_of(form, torch.float64))
    run_in_processes(2, checks.saves, form, tmp_path)
    for processes in (4, 2, 1):
        run_in_processes(processes, checks.goes_on, form, tmp_path, expected)
