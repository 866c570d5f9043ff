import copy
import io

import torch
import transformers
from torch import Tensor, nn

from preconditioned_attention import PreconditionConfig, precondition_, restore_
from preconditioned_attention.conversion.adapters.transformers.swaps_wavlm import WavLMSwap
from tests.helpers.explicit import relative_error
from tests.helpers.oracle import compare
from tests.helpers.transformers_cases import Case, first_attention, outputs
from tests.helpers.transformers_hook_cases import HOOKED
from tests.helpers.transformers_modules import attention_class, normalized


def test_wavlm() -> None:
    """torch's function with the identity for its projection gives the merged heads."""
    module = first_attention(HOOKED["wavlm"].build())
    x, mask = torch.randn(2, 9, 32, dtype=torch.float64), torch.ones(2, 9)
    mask[1, 6:] = 0

    def reference(inside: nn.Module, *args: Tensor) -> Tensor:
        projection = copy.deepcopy(inside.out_proj)
        with torch.no_grad():
            inside.out_proj.weight.copy_(torch.eye(32))
            inside.out_proj.bias.zero_()
        return projection(normalized(inside(*args)[0]))

    for train in (False, True):
        proof = compare(module.train(train), x, mask, config=PreconditionConfig(), reference=reference)
        assert proof.error <= 1e-12
        assert proof.effect > 1e-3
    plain = module(x, mask)
    precondition_(module)
    for theirs, ours in zip(plain[1:], module(x, mask)[1:], strict=True):
        assert relative_error(ours, theirs) <= 1e-12, "the weights and the position bias are as they were"


def test_a_converted_model_is_copied_pickled_and_restored() -> None:
    case: Case = HOOKED["wavlm"]
    model, given = case.build(), case.inputs()
    plain, state = outputs(model, given), model.state_dict().keys()
    precondition_(model, PreconditionConfig(gain=0.5), strict=True)
    expected = outputs(model, given)
    file = io.BytesIO()
    torch.save(first_attention(model), file)  # not the model: WavLM's weight-normalized convolution does not pickle
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
    assert WavLMSwap.is_text_known(), transformers.__version__


def test_a_subclass_is_not_swapped() -> None:
    """It may have more to its forward than the replacement knows."""

    class Other(attention_class("wavlm.WavLMAttention")):
        pass

    assert not WavLMSwap().supports(Other, WavLMSwap.original)
