import pytest
import torch

from preconditioned_attention.ops.context_parallel import context_mesh, token_order
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
