"""TorchScript: tracing serves every family, scripting is refused by a sentence that names what serves."""

import io
import warnings

import pytest
import torch
from torch import Tensor, nn

from preconditioned_attention import equilibrate, precondition_, preconditioned_attention
from tests.helpers.deployment_models import FAMILIES, LANGUAGE, assert_is_converted
from tests.helpers.explicit import relative_error

pytestmark = pytest.mark.filterwarnings("ignore")  # PyTorch says of each of its calls that it is deprecated
ALL = FAMILIES | LANGUAGE
REFUSAL = r"torch.jit.script cannot compile preconditioned attention: use torch.export.export.* or torch.jit.trace"


@pytest.mark.parametrize("name", ALL)
def test_every_family_is_traced(name: str) -> None:
    family = ALL[name]
    traced = torch.jit.trace(family.converted(), (family.inputs(),))
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.freeze(traced), buffer)
    buffer.seek(0)
    assert_is_converted(torch.jit.load(buffer)(family.inputs()), family)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_family_is_scripted(name: str) -> None:
    model = FAMILIES[name].converted()
    with pytest.raises(RuntimeError, match=REFUSAL):
        torch.jit.script(model)
    with pytest.raises(RuntimeError, match=REFUSAL):
        torch.jit.script(nn.Sequential(nn.Identity(), model))


def attend(x: Tensor) -> Tensor:
    return preconditioned_attention(x, x, x)


def scale(x: Tensor) -> Tensor:
    return equilibrate(x)


def test_functions_are_not_scripted() -> None:
    for function in (attend, scale, preconditioned_attention, equilibrate):
        with pytest.raises(RuntimeError, match=REFUSAL):
            torch.jit.script(function)


def test_a_trace_serves_other_batches_and_lengths() -> None:
    q = torch.randn(2, 3, 5, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(attend, (q,))
    other = torch.randn(4, 3, 9, 8)
    assert relative_error(traced(other), attend(other)) <= 1e-6


def test_a_script_is_not_converted() -> None:
    """The order is named: convert, then trace."""
    holder = nn.Sequential(torch.jit.script(nn.Linear(2, 2)), FAMILIES["vit"].plain())
    with pytest.raises(ValueError, match=r"is a TorchScript module; convert, then torch.jit.trace"):
        precondition_(holder)
