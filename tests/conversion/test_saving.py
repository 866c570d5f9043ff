import torch
from torch import nn
from transformers import BertConfig, BertModel, BloomConfig, BloomModel

from preconditioned_attention import ConditionMonitor, PreconditionConfig, layers, precondition_, restore_
from preconditioned_attention.conversion.saving import describe


def bert() -> nn.Module:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20}
    return BertModel(BertConfig(**sizes, vocab_size=30))


def test_it_says_what_the_model_is_now() -> None:
    model = bert()
    assert describe(model) is None
    precondition_(model, PreconditionConfig(eps=1e-6), filter_fn=lambda module, path: "layer.1" in path)
    entry = describe(model)
    assert entry is not None
    assert entry["modules"] == ["encoder.layer.1.attention.self"]
    assert (entry["marker"], entry["exceptions"]) == (True, {})
    assert PreconditionConfig.from_dict(entry["config"]) == PreconditionConfig(eps=1e-6)
    precondition_(model, filter_fn=lambda module, path: "layer.0" in path, marker=False)
    entry = describe(model)
    assert entry is not None
    assert list(entry["exceptions"]) == ["encoder.layer.1.attention.self"]
    (way,) = entry["attachments"]
    assert way["modules"] == entry["modules"] == [f"encoder.layer.{i}.attention.self" for i in (0, 1)]
    restore_(model)
    assert describe(model) is None


def test_a_hook_is_described_by_its_place_and_layout() -> None:
    model = BloomModel(BloomConfig(hidden_size=16, n_layer=1, n_head=2, vocab_size=30))
    precondition_(model)
    entry = describe(model)
    assert entry is not None
    (way,) = entry["attachments"]
    assert (way["form"], way["points"], way["num_heads"]) == ("pre-hook", ["dense"], 2)
    assert way["layout"] == {"head_dim": 8, "form": "merged", "interleaved": False, "width": None, "num_heads": None}


def test_what_no_conversion_put_there_is_not_described() -> None:
    """A layer of ours that was built preconditioned belongs to its model's class; a monitor only looks."""
    own = nn.Sequential(layers.MultiheadAttention(16, 2, precondition=PreconditionConfig()))
    assert describe(own) is None
    model = bert().eval()
    with ConditionMonitor(model) as monitor:
        model(torch.arange(5).view(1, 5))
        assert describe(model) is None
    assert monitor.summary()
