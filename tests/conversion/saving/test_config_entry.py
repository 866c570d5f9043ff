import logging
from pathlib import Path

import diffusers
import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models import save_for_hf
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from transformers import (
    BertConfig,
    BertModel,
    BloomConfig,
    BloomModel,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
)

from preconditioned_attention import ConditionMonitor, PreconditionConfig, layers, precondition_, restore_
from preconditioned_attention.conversion import from_pretrained
from preconditioned_attention.conversion.saving.config_entry import conversion_entry


def bert() -> nn.Module:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20}
    return BertModel(BertConfig(**sizes, vocab_size=30))


def test_it_says_what_the_model_is_now() -> None:
    model = bert()
    assert conversion_entry(model) is None
    precondition_(model, PreconditionConfig(eps=1e-6), filter_fn=lambda module, path: "layer.1" in path)
    entry = conversion_entry(model)
    assert entry is not None
    assert entry["modules"] == ["encoder.layer.1.attention.self"]
    assert (entry["marker"], entry["exceptions"]) == (True, {})
    assert PreconditionConfig.from_dict(entry["config"]) == PreconditionConfig(eps=1e-6)
    precondition_(model, filter_fn=lambda module, path: "layer.0" in path, marker=False)
    entry = conversion_entry(model)
    assert entry is not None
    assert list(entry["exceptions"]) == ["encoder.layer.1.attention.self"]
    (way,) = entry["attachments"]
    assert way["modules"] == entry["modules"] == [f"encoder.layer.{i}.attention.self" for i in (0, 1)]
    restore_(model)
    assert conversion_entry(model) is None


def test_a_hook_is_described_by_its_place_and_layout() -> None:
    model = BloomModel(BloomConfig(hidden_size=16, n_layer=1, n_head=2, vocab_size=30))
    precondition_(model)
    entry = conversion_entry(model)
    assert entry is not None
    (way,) = entry["attachments"]
    assert (way["form"], way["points"], way["num_heads"]) == ("pre-hook", ["dense"], 2)
    assert way["layout"] == {"head_dim": 8, "form": "merged", "interleaved": False, "width": None, "num_heads": None}


def test_what_no_conversion_put_there_is_not_described() -> None:
    """A layer of ours that was built preconditioned belongs to its model's class; a monitor only looks."""
    own = nn.Sequential(layers.MultiheadAttention(16, 2, precondition=PreconditionConfig()))
    assert conversion_entry(own) is None
    model = bert().eval()
    with ConditionMonitor(model) as monitor:
        model(torch.arange(5).view(1, 5))
        assert conversion_entry(model) is None
    assert monitor.summary()


class _Sentences(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = torch.arange(6) + index
        return {"input_ids": tokens, "labels": tokens}


def trainer(folder: Path, model: nn.Module) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=4,
        per_device_train_batch_size=2,
        save_steps=2,
        eval_steps=2,
        eval_strategy="steps",
        load_best_model_at_end=True,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    return Trainer(model=model, args=arguments, train_dataset=_Sentences(), eval_dataset=_Sentences())


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=20, n_positions=8))
    precondition_(model, PreconditionConfig(gain=0.5))
    return model


@pytest.mark.filterwarnings("error:this checkpoint does not say")
def test_checkpoints_of_the_trainer(tmp_path: Path) -> None:
    """Written as any folder is, taken up again, and the best one loaded at the end."""
    first = trainer(tmp_path, gpt2())
    first.train()
    tokens = torch.arange(6).view(1, 6)
    for step in (2, 4):
        folder = tmp_path / f"checkpoint-{step}"
        with pytest.raises(ValueError, match="preconditioned_attention"):
            GPT2LMHeadModel.from_pretrained(folder)
        again = from_pretrained(GPT2LMHeadModel, folder)
        assert again.transformer.h[0].attn.preconditioner.gain.tolist() != [0.5, 0.5]
    assert torch.equal(again(tokens).logits, first.model.eval()(tokens).logits), "the last is the best here"
    resumed = trainer(tmp_path, gpt2())
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    torch.testing.assert_close(resumed.model.eval()(tokens).logits, again(tokens).logits)


def test_other_libraries_stop_or_warn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The table in docs/saving.md."""
    model = timm.create_model("test_vit")
    precondition_(model)
    save_for_hf(model, tmp_path / "timm", safe_serialization=True)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*requires_preconditioned_attention"):
        timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True)
    with caplog.at_level("WARNING", logger="timm"):
        timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True, num_classes=3)
    assert "requires_preconditioned_attention" in caplog.text
    caplog.clear()
    denoiser = diffusers.Transformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=8, num_layers=1, norm_num_groups=4
    )
    precondition_(denoiser)
    denoiser.save_pretrained(tmp_path / "diffusers")
    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)
    try:
        again = diffusers.Transformer2DModel.from_pretrained(tmp_path / "diffusers")
    finally:
        logger.removeHandler(caplog.handler)
    assert "were not used" in caplog.text
    assert "requires_preconditioned_attention" in caplog.text
    precondition_(again)
    again.load_state_dict(load_file(tmp_path / "diffusers" / "diffusion_pytorch_model.safetensors"))


def test_names_are_those_of_the_plain_model() -> None:
    model = bert()
    precondition_(model)
    expected = conversion_entry(model)
    for layer in list(model.encoder.layer):
        layer.attention = checkpoint_wrapper(layer.attention)
    assert conversion_entry(model) == expected
