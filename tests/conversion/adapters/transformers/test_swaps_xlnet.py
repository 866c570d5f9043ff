import copy
import io

import torch
import transformers

from preconditioned_attention import PreconditionConfig, precondition_, restore_
from preconditioned_attention.conversion.adapters.transformers.swaps_xlnet import XLNetSwap
from tests.helpers.explicit import relative_error
from tests.helpers.oracle import normalizing_inside
from tests.helpers.transformers_cases import Case, first_attention, outputs, tokens
from tests.helpers.transformers_hook_cases import HOOKED
from tests.helpers.transformers_modules import attention_class


def test_xlnet_with_a_query_stream() -> None:
    """Two of twelve tokens are predicted: their rows come from a stream that is attended to on its own.

    Theirs mixes float32 in, hence the precision.
    """
    model, given = HOOKED["xlnet"].build().float(), tokens()
    mapping = torch.zeros(2, 2, 12)
    mapping[:, 0, 3] = mapping[:, 1, 7] = 1.0
    hidden = torch.zeros(2, 12, 12)
    hidden[:, :, [3, 7]] = 1.0
    given |= {"perm_mask": hidden, "target_mapping": mapping}
    plain = outputs(model, given)
    with normalizing_inside(model, type(first_attention(model))) as widths:
        expected = outputs(model, given)
    assert len(widths) == 4, "two streams in each of two layers"
    precondition_(model, strict=True)
    assert relative_error(outputs(model, given), expected) <= 1e-5
    assert relative_error(plain, expected) > 1e-3


def test_a_converted_model_is_copied_pickled_and_restored() -> None:
    case: Case = HOOKED["xlnet"]
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
    assert XLNetSwap.is_text_known(), transformers.__version__


def test_a_subclass_is_not_swapped() -> None:
    """It may have more to its forward than the replacement knows."""

    class Other(attention_class("xlnet.XLNetRelativeAttention")):
        pass

    assert not XLNetSwap().supports(Other, XLNetSwap.original)
