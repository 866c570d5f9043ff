from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from preconditioned_attention import PreconditionConfig, precondition_, restore_
from preconditioned_attention.conversion import from_pretrained

TOKENS = torch.arange(10).view(1, 10)


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=24, n_head=3, vocab_size=50, n_positions=16)).eval()


@pytest.mark.parametrize("options", [{}, {"gain": 0.5, "gradient": "stop"}], ids=str)
@pytest.mark.parametrize("marker", [True, False])
def test_round_trip(options: dict, marker: bool, tmp_path: Path) -> None:
    model = gpt2()
    precondition_(model, PreconditionConfig(**options), marker=marker)
    with torch.no_grad():
        for block in model.transformer.h:
            if options.get("gain"):
                block.attn.preconditioner.gain.uniform_(0.1, 2.0)
    model.save_pretrained(tmp_path)
    again = from_pretrained(AutoModelForCausalLM, tmp_path)
    assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)
    assert list(again.state_dict()) == list(model.state_dict())
    assert again.transformer.h[0].attn.preconditioner.config == PreconditionConfig(**options)


def test_without_the_head(tmp_path: Path) -> None:
    """The names in the file have the head's prefix, and the model that is loaded has not."""
    model = gpt2()
    precondition_(model, PreconditionConfig(gain=0.5))
    with torch.no_grad():
        model.transformer.h[1].attn.preconditioner.gain.fill_(3.0)
    model.save_pretrained(tmp_path)
    again = from_pretrained(AutoModel, tmp_path)
    assert torch.equal(again(TOKENS).last_hidden_state, model.transformer(TOKENS).last_hidden_state)


def test_modules_that_were_left_out_stay_out(tmp_path: Path) -> None:
    model = gpt2()
    precondition_(model, filter_fn=lambda module, path: ".1." in path)
    model.save_pretrained(tmp_path)
    again = from_pretrained(AutoModelForCausalLM, tmp_path)
    assert not hasattr(again.transformer.h[0].attn, "preconditioner")
    assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)


def test_restored_models_are_saved_as_plain_ones(tmp_path: Path) -> None:
    model = gpt2()
    precondition_(model)
    restore_(model)
    model.save_pretrained(tmp_path)
    assert "preconditioned" not in (tmp_path / "config.json").read_text()
    with pytest.raises(ValueError, match=r"holds a plain model: its config\.json has no 'preconditioned_attention'"):
        from_pretrained(AutoModelForCausalLM, tmp_path)


def test_a_gain_that_is_missing(tmp_path: Path) -> None:
    model = gpt2()
    precondition_(model, PreconditionConfig(gain=1.0))
    state = {key: value for key, value in model.state_dict().items() if "h.1.attn.preconditioner.gain" not in key}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=r"have 0 gains for 'transformer\.h\.1\.attn'; one was expected"):
        from_pretrained(AutoModelForCausalLM, tmp_path)
