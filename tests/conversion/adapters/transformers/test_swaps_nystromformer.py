import copy
import io

import pytest
import torch
import transformers
from torch import Tensor, nn

from preconditioned_attention import PreconditionConfig, precondition_, restore_
from preconditioned_attention.conversion.adapters.transformers.swaps_nystromformer import NystromformerSwap
from tests.helpers.oracle import compare
from tests.helpers.transformers_cases import Case, first_attention, outputs
from tests.helpers.transformers_hook_cases import HOOKED
from tests.helpers.transformers_modules import attention_class, normalized


@pytest.mark.parametrize("placement", ["pre_skip", "post_skip"])
@pytest.mark.parametrize("landmarks", [4, 12])
def test_nystromformer(placement: str, landmarks: int) -> None:
    """The skip is what is left when a copy without the convolution is taken away."""
    module = first_attention(HOOKED["nystromformer"].build())
    module.num_landmarks = landmarks
    x, mask = torch.randn(2, 12, 32, dtype=torch.float64), torch.zeros(2, 1, 1, 12, dtype=torch.float64)
    mask[1, ..., 8:] = -1e4

    def reference(inside: nn.Module, *args: Tensor) -> Tensor:
        whole = inside(*args)[0]
        inside.conv_kernel_size = None
        rows = inside(*args)[0]
        return normalized(rows) + (whole - rows) if placement == "pre_skip" else normalized(whole)

    for train in (False, True):
        proof = compare(
            module.train(train), x, mask, config=PreconditionConfig(placement=placement), reference=reference
        )
        assert proof.error <= 1e-12
        assert proof.effect > 1e-3


def test_nystromformer_without_a_skip() -> None:
    module = first_attention(HOOKED["nystromformer"].build())
    module.conv_kernel_size = None
    x = torch.randn(2, 12, 32, dtype=torch.float64)
    proof = compare(module, x, config=PreconditionConfig(), reference=lambda inside, x: normalized(inside(x)[0]))
    assert proof.error <= 1e-12


def test_a_converted_model_is_copied_pickled_and_restored() -> None:
    case: Case = HOOKED["nystromformer"]
    model, given = case.build(), case.inputs()
    plain, state = outputs(model, given), model.state_dict().keys()
    precondition_(model, PreconditionConfig(gain=0.5), strict=True)
    expected = outputs(model, given)
    file = io.BytesIO()
    torch.save(first_attention(model), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert (type(loaded), repr(loaded)) == (type(first_attention(model)), repr(first_attention(model)))
    twin = copy.deepcopy(model)
    restore_(model)
    assert torch.equal(outputs(twin, given), expected)
    assert torch.equal(outputs(model, given), plain)
    assert model.state_dict().keys() == state


def test_the_installed_text_is_the_known_one() -> None:
    """Fails when a new transformers changes it: read it, then renew the replacement and its digest."""
    assert NystromformerSwap.is_text_known(), transformers.__version__


def test_a_subclass_is_not_swapped() -> None:
    """It may have more to its forward than the replacement knows."""

    class Other(attention_class("nystromformer.NystromformerSelfAttention")):
        pass

    assert not NystromformerSwap().supports(Other, NystromformerSwap.original)
