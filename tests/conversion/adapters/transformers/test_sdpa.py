import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from preconditioned_attention import PreconditionConfig
from preconditioned_attention.conversion.adapters.transformers import sdpa
from preconditioned_attention.conversion.source_texts.reachable_code import text_digest
from preconditioned_attention.layers import Preconditioner
from tests.helpers.explicit import relative_error


class Caller(nn.Module):
    """What their function reads of the module that calls it."""

    def __init__(self, groups: int, is_causal: bool) -> None:
        super().__init__()
        self.num_key_value_groups = groups
        self.is_causal = is_causal


CASES = {
    "encoder": (1, False, 7, 7, None, {}),
    "decoder": (1, True, 7, 7, None, {}),
    "empty static cache": (1, True, 5, 9, None, {}),
    "boolean mask": (1, True, 7, 7, "bool", {}),
    "additive mask": (1, False, 7, 7, "float", {"scaling": 0.3}),
    "shared heads": (2, True, 7, 7, None, {}),
    "shared heads with a mask": (2, True, 7, 9, "bool", {}),
    "decoding": (1, True, 1, 9, None, {}),
    "causality by argument": (1, False, 7, 7, None, {"is_causal": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_theirs_with_the_rows_scaled(case: str) -> None:
    groups, is_causal, length, keys, kind, options = CASES[case]
    module, c = Caller(groups, is_causal), Preconditioner(PreconditionConfig())
    query = torch.randn(2, 4, length, 8, dtype=torch.float64)
    key, value = torch.randn(2, 2, 4 // groups, keys, 8, dtype=torch.float64).unbind(0)
    additive = torch.randn(2, 1, length, keys, dtype=torch.float64)
    mask: Tensor | None = {None: None, "bool": additive > -0.5, "float": additive}[kind]
    assert sdpa.supports(module, query, options)
    out, weights = sdpa.attend(c, module, query, key, value, mask, options)
    theirs, _ = sdpa_attention_forward(module, query, key, value, mask, **options)
    expected = c(theirs.transpose(1, 2)).transpose(1, 2)
    assert weights is None
    assert (out.shape, out.is_contiguous()) == (expected.shape, True)
    assert relative_error(out, expected) <= 1e-13


def test_leaves_to_theirs_what_it_does_not_know() -> None:
    module = Caller(2, True)
    query = torch.randn(1, 4, 3, 8)
    assert sdpa.supports(module, query, {"softcap": None, "output_attentions": False})
    for options in ({"softcap": 30.0}, {"position_bias": query}, {"cache": object()}, {"output_attentions": True}):
        assert not sdpa.supports(module, query, options)
    assert not sdpa.supports(module, query[:, :, :1], {}), "they pack shared heads for one token"


def test_the_installed_text_is_the_known_one() -> None:
    """Fails when a new transformers changes its function: read it, then renew ours and the digest."""
    assert text_digest(sdpa_attention_forward) in sdpa.KNOWN_TEXTS, transformers.__version__
