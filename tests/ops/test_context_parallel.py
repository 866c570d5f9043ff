from types import SimpleNamespace

import pytest
import torch

from preconditioned_attention.ops import AttentionInputs, context_parallel
from preconditioned_attention.ops.context_parallel import context_mesh, ring_supports, token_order
from tests.helpers import context_worker as worker


def test_result_and_gradients_are_those_of_one_process() -> None:
    """With every backend, both gradients, both orders of the tokens and both rotations; of models, too."""
    worker.run_on_two(
        [
            worker.every_backend,
            worker.both_rotations,
            worker.second_derivatives,
            worker.lengths_that_do_not_divide,
            worker.restores_what_it_found,
            worker.refusals,
            worker.models,
            worker.language_model,
            worker.distributed_sequences,
            worker.meshes_of_two_axes,
            worker.distributed_tensors_in_context,
            worker.compiled_before_and_inside,
        ]
    )


def test_no_context() -> None:
    assert context_mesh() is None


@pytest.mark.parametrize(
    ("balanced", "expected"), [(False, [0, 1, 2, 3, 4, 5, 6, 7]), (True, [0, 1, 6, 7, 2, 3, 4, 5])]
)
def test_the_order_of_the_tokens(balanced: bool, expected: list[int]) -> None:
    assert token_order(8, 2, balanced=balanced, device=torch.device("cpu")).tolist() == expected


@pytest.mark.parametrize(
    ("device", "is_causal", "balanced", "expected"),
    [
        ("cuda", True, True, True),
        ("cuda", True, False, True),
        ("cuda", False, True, False),  # "Load balancing requires `is_causal=True`"
        ("cuda", False, False, True),
        ("cpu", True, False, False),
    ],
)
def test_what_the_ring_supports(
    device: str, is_causal: bool, balanced: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context_parallel, "_is_balanced", lambda: balanced)
    q = SimpleNamespace(device=torch.device(device))
    options = {"attn_mask": None, "dropout_p": 0.0, "scale": None, "enable_gqa": False, "gain": None, "eps": 1e-12}
    inputs = AttentionInputs(q=q, k=q, v=q, is_causal=is_causal, gradient="full", **options)
    assert ring_supports(inputs) == expected
