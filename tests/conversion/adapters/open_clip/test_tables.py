import pytest
import torch
from torch import nn

from preconditioned_attention import PreconditionConfig, precondition_
from tests.helpers.oracle import compare, jitter_

pytest.importorskip("open_clip")

from open_clip import transformer


@pytest.mark.parametrize(
    "options", [{}, {"inner_norm": True}, {"qk_norm": True, "qkv_bias": False}], ids=["plain", "inner norm", "qk norm"]
)
@pytest.mark.parametrize("training", [True, False])
def test_attention(options: dict, training: bool) -> None:
    module = jitter_(transformer.Attention(12, 3, norm_layer=nn.LayerNorm, **options)).double().train(training)
    x, mask = torch.randn(2, 5, 12, dtype=torch.float64), torch.ones(5, 5, dtype=torch.bool).triu(1)
    for given in (None, mask):
        proof = compare(module, x, given, config=PreconditionConfig())
        assert proof.error <= 1e-10
        assert proof.effect > 1e-3
        assert proof.widths == {4}


def test_scaled_heads_are_refused() -> None:
    module = transformer.Attention(12, 3, scale_heads=True)
    with pytest.raises(ValueError, match="heads are scaled before"):
        precondition_(module)


def test_multihead_attention_users_convert_whole() -> None:
    text = transformer.TextTransformer(6, 20, 12, 3, 2, 2.0, output_dim=5).double().eval()
    report = precondition_(text, strict=True)
    report.verify(torch.randint(1, 19, (2, 6)))
    assert len(report.converted) == 2


def test_a_pooler_is_what_it_holds() -> None:
    pooler = transformer.AttentionalPooler(12, 8, n_head=3, n_queries=4).double()
    report = precondition_(pooler, strict=True)
    assert [entry.path for entry in report.entries] == ["attn"]
    report.verify(torch.randn(2, 5, 8, dtype=torch.float64))
