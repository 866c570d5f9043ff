import torchvision.models
from torch import nn

from preconditioned_attention.lab.census.catalog import (
    attention_classes,
    installed_libraries,
    model_files,
    module_classes,
)


def test_model_files() -> None:
    files = model_files("transformers")
    assert "transformers.models.bert.modeling_bert" in files
    assert not any("tokenization" in file for file in files)
    assert {"timm.layers.attention", "timm.models.swin_transformer"} <= set(model_files("timm"))


def test_libraries() -> None:
    assert installed_libraries()["timm"] is True
    assert set(installed_libraries()) >= {"diffusers", "open_clip", "torchvision", "transformers", "x_transformers"}


def test_classes_that_look_their_attention_up() -> None:
    (bert,) = [e for e in attention_classes("transformers.models.bert.modeling_bert") if "CrossAttention" in e.name]
    assert bert.looks_up
    assert bert.adapter is not None
    assert bert.unsupported_reason is None
    refused = attention_classes("transformers.models.florence2.modeling_florence2")
    channel = [entry for entry in refused if "VisionChannelAttention" in entry.name]
    assert [bool(entry.unsupported_reason) for entry in channel] == [True]


def test_classes_of_a_file_are_its_own() -> None:
    classes = module_classes(torchvision.models.vision_transformer)
    assert torchvision.models.vision_transformer.EncoderBlock in classes
    assert nn.MultiheadAttention not in classes


def test_classes_that_nobody_knows() -> None:
    """By the code of their forward, or by the name and the projections that their constructor makes."""
    names = {entry.name for entry in attention_classes("timm.layers.non_local_attn") if entry.adapter is None}
    assert names == {"timm.layers.non_local_attn.NonLocalAttn"}
