import copy
import io

import pytest
import torch
import transformers
from torch import Tensor, nn

from preconditioned_attention import PreconditionConfig, precondition_, restore_
from preconditioned_attention.conversion.adapters.transformers.swaps_xlnet import find
from preconditioned_attention.conversion.adapters.transformers.tables import SWAPPED
from tests.helpers.explicit import relative_error
from tests.helpers.oracle import compare, normalising_inside
from tests.helpers.transformers_cases import Case, first_attention, outputs, tokens
from tests.helpers.transformers_modules import attention_class, normalised
from tests.helpers.transformers_own_cases import OWN


@pytest.mark.parametrize("placement", ["pre_skip", "post_skip"])
@pytest.mark.parametrize("landmarks", [4, 12])
def test_nystromformer(placement: str, landmarks: int) -> None:
    """The skip is what is left when a copy without the convolution is taken away."""
    module = first_attention(OWN["nystromformer"].build())
    module.num_landmarks = landmarks
    x, mask = torch.randn(2, 12, 32, dtype=torch.float64), torch.zeros(2, 1, 1, 12, dtype=torch.float64)
    mask[1, ..., 8:] = -1e4

    def reference(inside: nn.Module, *args: Tensor) -> Tensor:
        whole = inside(*args)[0]
        inside.conv_kernel_size = None
        rows = inside(*args)[0]
        return normalised(rows) + (whole - rows) if placement == "pre_skip" else normalised(whole)

    for train in (False, True):
        proof = compare(
            module.train(train), x, mask, config=PreconditionConfig(placement=placement), reference=reference
        )
        assert proof.error <= 1e-12
        assert proof.effect > 1e-3


def test_nystromformer_without_a_skip() -> None:
    module = first_attention(OWN["nystromformer"].build())
    module.conv_kernel_size = None
    x = torch.randn(2, 12, 32, dtype=torch.float64)
    proof = compare(module, x, config=PreconditionConfig(), reference=lambda inside, x: normalised(inside(x)[0]))
    assert proof.error <= 1e-12


def test_wavlm() -> None:
    """torch's function with the identity for its projection gives the merged heads."""
    module = first_attention(OWN["wavlm"].build())
    x, mask = torch.randn(2, 9, 32, dtype=torch.float64), torch.ones(2, 9)
    mask[1, 6:] = 0

    def reference(inside: nn.Module, *args: Tensor) -> Tensor:
        projection = copy.deepcopy(inside.out_proj)
        with torch.no_grad():
            inside.out_proj.weight.copy_(torch.eye(32))
            inside.out_proj.bias.zero_()
        return projection(normalised(inside(*args)[0]))

    for train in (False, True):
        proof = compare(module.train(train), x, mask, config=PreconditionConfig(), reference=reference)
        assert proof.error <= 1e-12
        assert proof.effect > 1e-3
    plain = module(x, mask)
    precondition_(module)
    for theirs, ours in zip(plain[1:], module(x, mask)[1:], strict=True):
        assert relative_error(ours, theirs) <= 1e-12, "the weights and the position bias are as they were"


def test_xlnet_with_a_query_stream() -> None:
    """Two of twelve tokens are predicted: their rows come from a stream that is attended to on its own.

    Theirs mixes float32 in, hence the precision.
    """
    model, given = OWN["xlnet"].build().float(), tokens()
    mapping = torch.zeros(2, 2, 12)
    mapping[:, 0, 3] = mapping[:, 1, 7] = 1.0
    hidden = torch.zeros(2, 12, 12)
    hidden[:, :, [3, 7]] = 1.0
    given |= {"perm_mask": hidden, "target_mapping": mapping}
    plain = outputs(model, given)
    with normalising_inside(model, type(first_attention(model))) as widths:
        expected = outputs(model, given)
    assert len(widths) == 4, "two streams in each of two layers"
    precondition_(model, strict=True)
    assert relative_error(outputs(model, given), expected) <= 1e-5
    assert relative_error(plain, expected) > 1e-3


@pytest.mark.parametrize("name", ["nystromformer", "wavlm", "xlnet"])
def test_swapped_models_are_copied_pickled_and_restored(name: str) -> None:
    case: Case = OWN[name]
    model, given = case.build(), case.inputs()
    plain, state = outputs(model, given), model.state_dict().keys()
    precondition_(model, PreconditionConfig(gain=0.5), strict=True)
    expected = outputs(model, given)
    file = io.BytesIO()
    torch.save(first_attention(model), file)  # not the model: WavLM's weight-normalised convolution does not pickle
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert (type(loaded), repr(loaded)) == (type(first_attention(model)), repr(first_attention(model)))
    twin = copy.deepcopy(model)
    restore_(model)
    assert torch.equal(outputs(twin, given), expected)
    assert torch.equal(outputs(model, given), plain)
    assert model.state_dict().keys() == state


@pytest.mark.parametrize("name", SWAPPED["swaps_xlnet"])
def test_the_installed_texts_are_the_known_ones(name: str) -> None:
    """Fails when a new transformers changes one: read it, then renew the replacement and its digest."""
    folder, cls = name.split(".")[2], name.rpartition(".")[2]
    assert find(attention_class(f"{folder}.{cls}")) is not None, transformers.__version__


def test_subclasses_are_left_to_others() -> None:
    """A subclass may have more to its forward than the replacement knows."""

    class Other(attention_class("wavlm.WavLMAttention")):
        pass

    assert find(Other) is None
