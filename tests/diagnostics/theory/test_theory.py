import pytest
import torch

from preconditioned_attention.diagnostics.theory import optimal_row_scaling
from tests.helpers.activations import heads_of_architectures, inequalities

NAMES = ["vit_tiny", "xcit_nano", "swin_tiny", "davit_tiny", "gpt2", "bert"]


@pytest.mark.parametrize("as_trained", [False, True], ids=["fresh norms", "trained norms"])
def test_on_the_activations_of_real_architectures(as_trained: bool) -> None:
    seen = []
    for heads in heads_of_architectures(norms_as_trained=as_trained):
        seen.append(heads.name)
        product = heads.weights @ heads.values
        rows = product.mT if heads.over_channels else product
        torch.testing.assert_close(rows, heads.rows, rtol=1e-9, atol=1e-12)  # taken apart as the model computes it
        for inequality in inequalities(heads):
            assert (inequality.holds | ~inequality.applies).all(), f"{heads.name}: {inequality.explain()}"
        first = heads.rows[0, 0]
        best = optimal_row_scaling(first)
        assert best.kappa <= (1 + 1e-6) * best.lower
        assert best.equilibrated <= len(first) ** 0.5 * best.lower
    assert seen == NAMES


def test_layer_norm_as_initialized_makes_the_input_singular() -> None:
    for heads in heads_of_architectures(norms_as_trained=False):
        *_, linear, _ = inequalities(heads)
        assert "X has full rank" in linear.explain()  # rows of a fresh LayerNorm sum to zero
    for heads in heads_of_architectures(norms_as_trained=True):
        *_, linear, head = inequalities(heads)
        assert "X has full rank" not in linear.explain()
        assert "N >= D = d" in linear.explain()
        assert head.applies.all()
