import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from preconditioned_attention import PreconditionConfig, precondition_
from preconditioned_attention.conversion import load_adapter
from tests.helpers.former import FORMER

TOKENS = torch.arange(10).view(1, 10)
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20}


def llama() -> nn.Module:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, vocab_size=30)).eval()


def lora(model: nn.Module) -> PeftModel:
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, r=2))
    return adapted.eval()


def converted(**options: object) -> nn.Module:
    model = llama()
    precondition_(model, PreconditionConfig(**options))
    return model


def said(folder: Path) -> dict:
    return json.loads((folder / "adapter_config.json").read_text()).get("requires_preconditioned_attention", {})


def test_an_adapter_says_what_its_base_was(tmp_path: Path) -> None:
    model = lora(converted(eps=1e-6))
    model.add_adapter("other", LoraConfig(target_modules=["q_proj"], r=2))
    model.save_pretrained(tmp_path)
    for folder in (tmp_path, tmp_path / "other"):
        assert list(said(folder)) == [f"model.layers.{i}.self_attn" for i in (0, 1)]
    again = load_adapter(converted(eps=1e-6), tmp_path).eval()
    assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)
    lora(llama()).save_pretrained(tmp_path / "plain")
    assert said(tmp_path / "plain") == {}
    load_adapter(llama(), tmp_path / "plain")


def test_transformers_own_adapters_say_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # This transformers asks for a PEFT that is not out yet, and then does nothing that the present one cannot do.
    monkeypatch.setattr("transformers.integrations.peft.check_peft_version", lambda **options: None)
    model = converted()
    model.add_adapter(LoraConfig(target_modules=["q_proj"], init_lora_weights=False, r=2))
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "generation_config.json",
    ]
    assert len(said(tmp_path)) == 2


def test_another_base_is_refused(tmp_path: Path) -> None:
    lora(converted(eps=1e-6)).save_pretrained(tmp_path / "preconditioned")
    lora(llama()).save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match=r"'model\.layers\.0\.self_attn' preconditioned .* and the model's is plain"):
        load_adapter(llama(), tmp_path / "preconditioned")
    with pytest.raises(ValueError, match=r"was saved with eps=1e-06 at 'model\.layers\.0\.self_attn'"):
        load_adapter(converted(), tmp_path / "preconditioned")
    with pytest.raises(ValueError, match="does not say that its base was preconditioned, and the model is"):
        load_adapter(converted(), tmp_path / "plain")
    with pytest.raises(OSError, match="adapter_config"):
        load_adapter(llama(), tmp_path)


def test_an_adapter_whose_options_also_selected_attention(tmp_path: Path) -> None:
    model = lora(converted(gradient="stop"))
    model.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    content = json.loads(path.read_text())
    content["requires_preconditioned_attention"] = dict.fromkeys(content["requires_preconditioned_attention"], FORMER)
    path.write_text(json.dumps(content))
    again = load_adapter(converted(gradient="stop"), tmp_path).eval()
    assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)
    with pytest.raises(ValueError, match="was saved with eps=None"):
        load_adapter(converted(gradient="stop", eps=1e-6), tmp_path)


def test_loading_it_rightly_is_silent(tmp_path: Path) -> None:
    lora(converted()).save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        load_adapter(converted(), tmp_path)
    with pytest.warns(UserWarning, match=r"\['requires_preconditioned_attention'\] for class LoraConfig"):
        PeftModel.from_pretrained(llama(), tmp_path)


ELSEWHERE = """
import sys, warnings
sys.modules["preconditioned_attention"] = None  # as where it is not installed
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import LlamaForCausalLM
with warnings.catch_warnings(record=True) as seen:
    PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(sys.argv[1]), sys.argv[2])
print([str(w.message) for w in seen if "requires_preconditioned_attention" in str(w.message)])
try:
    AutoPeftModelForCausalLM.from_pretrained(sys.argv[3])
except ValueError as error:
    print(error)
"""


def test_where_the_package_is_not_installed_a_plain_base_warns_and_a_saved_one_is_refused(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "plain")
    lora(converted()).save_pretrained(tmp_path / "adapter")
    converted().save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", trust_remote_code=True)
    lora(base).save_pretrained(tmp_path / "adapter-of-saved")
    folders = [str(tmp_path / name) for name in ("plain", "adapter", "adapter-of-saved")]
    command = [sys.executable, "-W", "always", "-c", ELSEWHERE, *folders]
    run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
    assert "Unexpected keyword arguments ['requires_preconditioned_attention'] for class LoraConfig" in run.stdout
    assert 'attn_implementation="preconditioned_attention"` is not supported' in run.stdout


LATE = """
import sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
from preconditioned_attention import precondition_
sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 20}
model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=30))
precondition_(model)
assert "peft" not in sys.modules
from peft import LoraConfig, get_peft_model
adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2))
adapted(torch.arange(5).view(1, 5))
adapted.save_pretrained(sys.argv[1])
"""


def test_peft_may_be_imported_after_the_conversion(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", LATE, str(tmp_path)], check=True)
    assert list(said(tmp_path)) == ["model.layers.0.self_attn"]
