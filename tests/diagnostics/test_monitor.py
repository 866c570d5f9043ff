import pytest
import timm
import torch
import transformers
from torch import nn

from preconditioned_attention import ConditionMonitor, precondition_
from preconditioned_attention.diagnostics import condition_number, row_norm_spread
from tests.explicit import attention_rows, diagonal_product


def vit() -> nn.Module:
    sizes = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 3, "num_classes": 5}
    return timm.create_model("vit_tiny_patch16_224", **sizes).double().eval()


IMAGES = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_what_it_records_is_a_and_c_a() -> None:
    model = vit()
    tokens = model.blocks[0].norm1(model._pos_embed(model.patch_embed(IMAGES)))
    q, k, v = model.blocks[0].attn.qkv(tokens).view(2, 17, 3, 3, 8).permute(2, 0, 3, 1, 4)
    rows = attention_rows(q, k, v)
    with ConditionMonitor(model) as monitor:
        model(IMAGES)
    first, second = monitor.summary()
    assert (first["layer"], second["layer"], first["matrices"]) == ("blocks.0.attn", "blocks.1.attn", 6)
    assert first["kappa_before"] == pytest.approx(condition_number(rows).value.median().item(), rel=1e-9)
    assert first["kappa_after"] == pytest.approx(condition_number(diagonal_product(rows)).value.median().item(), rel=1e-9)
    assert first["spread_before"] == pytest.approx(row_norm_spread(rows).value.median().item(), rel=1e-9)
    assert first["spread_after"] == pytest.approx(0.0, abs=1e-14)


@pytest.mark.parametrize("converted", [False, True])
def test_the_model_computes_what_it_did_inside_and_after(converted: bool) -> None:
    model = vit()
    if converted:
        precondition_(model)
    before, state, classes = model(IMAGES), model.state_dict(), [type(m) for m in model.modules()]
    with ConditionMonitor(model) as monitor:
        torch.testing.assert_close(model(IMAGES), before, rtol=1e-12, atol=1e-14)
        assert list(model.state_dict()) == list(state)
    assert torch.equal(model(IMAGES), before)
    assert [type(m) for m in model.modules()] == classes
    assert len(monitor.summary()) == 2


def test_partly_converted_model_is_seen_whole() -> None:
    model = vit()
    precondition_(model, filter_fn=lambda module, path: path == "blocks.1.attn")
    with ConditionMonitor(model) as monitor:
        model(IMAGES)
    assert len(monitor.summary()) == 2


def test_leaves_the_model_as_it_was_after_an_error() -> None:
    model = vit()
    classes = [type(m) for m in model.modules()]
    with pytest.raises(RuntimeError), ConditionMonitor(model):
        model(IMAGES[:, :1])
    assert [type(m) for m in model.modules()] == classes


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_on_the_other_adapters() -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 16, batch_first=True), 2).eval()
    config = transformers.BertConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32, vocab_size=40
    )
    bert = transformers.BertModel(config).eval()
    for model, given in ((encoder, torch.randn(3, 5, 16)), (bert, torch.arange(9)[None])):
        with ConditionMonitor(model) as monitor, torch.no_grad():
            model(given)
        assert all(row["kappa_before"] >= 1 for row in monitor.summary())


def test_a_model_that_was_not_run_or_has_no_attention() -> None:
    with ConditionMonitor(vit()) as monitor:
        pass
    with pytest.raises(ValueError, match="run the model inside the monitor"):
        monitor.summary()
    with pytest.raises(ValueError, match="no attention that can be observed"):
        ConditionMonitor(nn.Linear(2, 2)).__enter__()
    with pytest.raises(ValueError, match="is compiled"):
        ConditionMonitor(torch.compile(vit())).__enter__()
