import copy
import json
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    Aimv2VisionConfig,
    Aimv2VisionModel,
    AutoModel,
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    CLIPConfig,
    CLIPModel,
    CLIPTextModel,
    CLIPVisionModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    XLNetConfig,
    XLNetLMHeadModel,
)
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from preconditioned_attention import PreconditionConfig, precondition_, restore_
from preconditioned_attention.conversion import from_pretrained
from tests.helpers.former import FORMER

MARKER = "requires_preconditioned_attention"
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


def rewrite(folder: Path, change: Callable[[dict], None]) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def old_folder(folder: Path, *, gradient: str = "full", marker: bool = True) -> nn.Module:
    """As it was written while `config.json` had an entry and was plain otherwise, and marks were three integers."""
    model = gpt2()
    state = dict(model.state_dict())
    if marker:
        mark = torch.tensor([1, ["full", "stop"].index(gradient), 0])
        state |= {f"transformer.h.{i}.attn.preconditioner.{MARKER}": mark.clone() for i in (0, 1)}
    model.save_pretrained(folder, state_dict=state)
    modules = ["transformer.h.0.attn", "transformer.h.1.attn"]
    entry = {"config": PreconditionConfig(gradient=gradient).to_dict(), "modules": modules, "marker": marker}
    rewrite(folder, lambda content: content.update(preconditioned_attention=entry))
    precondition_(model, PreconditionConfig(gradient=gradient))
    return model


@pytest.mark.parametrize("marker", [True, False])
def test_folders_of_the_old_form(marker: bool, tmp_path: Path) -> None:
    model = old_folder(tmp_path, gradient="stop", marker=marker)
    again, info = from_pretrained(AutoModelForCausalLM, tmp_path, output_loading_info=True)
    assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)
    assert again.transformer.h[0].attn.preconditioner.config.gradient == "stop"
    assert not any(info.values())
    assert not hasattr(again.config, "preconditioned_attention")
    if marker:
        model.load_state_dict(again.state_dict())


@pytest.mark.parametrize("former", [FORMER, FORMER | {"pooling": True, "channel": False}], ids=["defaults", "others"])
def test_an_entry_whose_options_also_selected_attention(former: dict, tmp_path: Path) -> None:
    model = gpt2()
    precondition_(model, PreconditionConfig(gradient="stop"))
    model.save_pretrained(tmp_path)
    rewrite(tmp_path, lambda content: content["preconditioned_attention"].update(config=former))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = from_pretrained(AutoModelForCausalLM, tmp_path)
    assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)
    assert again.transformer.h[1].attn.preconditioner.config == PreconditionConfig(gradient="stop")


def test_pooling_that_was_saved_is_converted_again(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 20}
    model = Aimv2VisionModel(Aimv2VisionConfig(**sizes, image_size=8, patch_size=4)).eval()
    paths = {entry.path for entry in precondition_(model, include="all").converted}
    model.save_pretrained(tmp_path)
    rewrite(tmp_path, lambda content: content["preconditioned_attention"].update(config=FORMER | {"pooling": True}))
    rewrite(tmp_path, lambda content: content["preconditioned_attention"]["config"].update(gradient="full"))
    again = from_pretrained(Aimv2VisionModel, tmp_path)
    assert "head" in " ".join(paths)
    assert {path for path, module in again.named_modules() if "preconditioner" in module._modules} == paths


def test_an_old_mark_and_the_configuration_disagree(tmp_path: Path) -> None:
    old_folder(tmp_path, gradient="stop")
    rewrite(tmp_path, lambda content: content["preconditioned_attention"]["config"].update(gradient="full"))
    with pytest.raises(
        ValueError, match=r"config\.json says Mark\(gradient='full'.*weights says Mark\(gradient='stop'"
    ):
        from_pretrained(AutoModelForCausalLM, tmp_path)


def test_a_plain_model_that_inherited_the_configuration(tmp_path: Path) -> None:
    """Loaded plainly from a folder of the old form, trained and saved: the entry is still there, the marks are not."""
    old_folder(tmp_path / "old")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "old")
    assert plain.config.preconditioned_attention
    plain.save_pretrained(tmp_path / "new")
    with pytest.raises(
        ValueError, match=r"says that 'transformer\.h\.0\.attn' is preconditioned, and the weights have no"
    ):
        from_pretrained(AutoModelForCausalLM, tmp_path / "new")


def test_models_that_share_a_configuration(tmp_path: Path) -> None:
    converted, plain = gpt2(), gpt2()
    plain.config = converted.config
    before, kept = converted.config.to_dict(), vars(converted.config).copy()
    precondition_(converted)
    assert converted.config is plain.config is converted.transformer.config
    assert converted.config.to_dict() == before
    converted.save_pretrained(tmp_path / "converted")
    plain.save_pretrained(tmp_path / "plain")
    fresh = AutoModelForCausalLM.from_config(converted.config)
    fresh.save_pretrained(tmp_path / "fresh")
    for name in ("plain", "fresh"):
        assert "preconditioned" not in (tmp_path / name / "config.json").read_text()
        assert AutoModelForCausalLM.from_pretrained(tmp_path / name) is not None
    assert from_pretrained(AutoModelForCausalLM, tmp_path / "converted") is not None
    restore_(converted)
    assert set(vars(converted.config)) == set(kept)
    converted.save_pretrained(tmp_path / "converted")
    AutoModelForCausalLM.from_pretrained(tmp_path / "converted")


def test_a_save_that_fails_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = gpt2()
    precondition_(model)

    def full(*args: object, **options: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(model, "state_dict", full)
    monkeypatch.setattr(model.config, "to_json_file", full, raising=False)
    with pytest.raises(OSError, match="disk full"):
        model.save_pretrained(tmp_path)
    assert "save_pretrained" not in vars(model.config)


@pytest.mark.parametrize("part", ["transformer", "transformer.h.1"])
def test_a_part_is_converted_and_the_whole_is_saved(part: str, tmp_path: Path) -> None:
    model = gpt2()
    precondition_(model.get_submodule(part))
    model.save_pretrained(tmp_path)
    again = from_pretrained(AutoModelForCausalLM, tmp_path)
    assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)
    assert list(again.state_dict()) == list(model.state_dict())


def test_modules_with_options_of_their_own(tmp_path: Path) -> None:
    model = gpt2()
    precondition_(model, PreconditionConfig(gain=2.0), filter_fn=lambda module, path: ".0." in path)
    precondition_(model, PreconditionConfig(eps=1e-3), filter_fn=lambda module, path: ".1." in path, marker=False)
    model.save_pretrained(tmp_path)
    again = from_pretrained(AutoModelForCausalLM, tmp_path)
    configs = [block.attn.preconditioner.config for block in again.transformer.h]
    assert configs == [PreconditionConfig(gain=2.0), PreconditionConfig(eps=1e-3)]
    assert list(again.state_dict()) == list(model.state_dict())
    assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_a_copy_is_saved_as_what_it_is(copied: Callable, tmp_path: Path) -> None:
    model = gpt2()
    precondition_(model)
    copied(model).save_pretrained(tmp_path / "converted")
    from_pretrained(AutoModelForCausalLM, tmp_path / "converted")
    restore_(model)
    copied(model).save_pretrained(tmp_path / "plain")
    AutoModelForCausalLM.from_pretrained(tmp_path / "plain")


DISAGREEMENTS = {
    "another gradient": (
        lambda content: content["preconditioned_attention"]["config"].update(gradient="stop"),
        r"'transformer\.h\.0\.attn' has the gradient and placement that it names, and its mark in the weights says",
    ),
    "a module that is not listed": (
        lambda content: content["preconditioned_attention"]["modules"].pop(),
        r"'transformer\.h\.1\.attn' is plain, or has no mark, and the weights have its mark",
    ),
    "a module that is nowhere": (
        lambda content: content["preconditioned_attention"]["modules"].append("transformer.h.7.attn"),
        r"'transformer\.h\.7\.attn' is preconditioned, and neither model nor weights have such a module",
    ),
    "marks where there should be none": (
        lambda content: content["preconditioned_attention"].update(marker=False),
        r"'transformer\.h\.0\.attn' is plain, or has no mark, and the weights have its mark",
    ),
}


@pytest.mark.parametrize(("change", "message"), DISAGREEMENTS.values(), ids=DISAGREEMENTS)
def test_weights_and_configuration_disagree(change: Callable, message: str, tmp_path: Path) -> None:
    model = gpt2()
    precondition_(model)
    model.save_pretrained(tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        from_pretrained(AutoModelForCausalLM, tmp_path)


def test_marks_and_no_entry(tmp_path: Path) -> None:
    model = gpt2()
    precondition_(model)
    state = model.state_dict()
    gpt2().save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=r"weights mark 2 modules as preconditioned, 'transformer.* no entry 'precond"):
        from_pretrained(AutoModelForCausalLM, tmp_path)


def test_without_marks_the_entry_is_trusted_and_plain_loaders_are_refused_all_the_same(tmp_path: Path) -> None:
    model = gpt2()
    precondition_(model, marker=False)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["preconditioned_attention"]["marker"] is False
    with pytest.raises(ValueError, match="custom code"):
        AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=False)
    with pytest.raises(ValueError, match='"preconditioned_attention"` is not supported'):
        GPT2LMHeadModel.from_pretrained(tmp_path)
    again = from_pretrained(AutoModelForCausalLM, tmp_path)
    assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)


def saved(folder: Path, **options: object) -> nn.Module:
    model = gpt2()
    precondition_(model, PreconditionConfig(gain=0.5))
    for block in model.transformer.h:
        nn.init.uniform_(block.attn.preconditioner.gain, 0.5, 2.0)
    model.save_pretrained(folder, **options)
    return model


@pytest.mark.parametrize("model_class", [AutoModelForCausalLM, GPT2LMHeadModel])
def test_it_takes_what_from_pretrained_takes(model_class: type, tmp_path: Path) -> None:
    model = saved(tmp_path / "folder" / "inside")
    again, info = from_pretrained(
        model_class,
        tmp_path / "folder",
        subfolder="inside",
        dtype=torch.bfloat16,
        device_map="cpu",
        attn_implementation="eager",
        low_cpu_mem_usage=True,
        local_files_only=True,
        revision="main",
        token=False,
        output_loading_info=True,
        use_cache=False,
    )
    assert type(again) is GPT2LMHeadModel
    assert not any(info.values())
    assert {tensor.dtype for tensor in again.state_dict().values()} == {torch.bfloat16}
    assert (again.config._attn_implementation, again.config.use_cache) == ("eager", False)
    for own, other in zip(again.transformer.h, model.transformer.h, strict=True):
        assert torch.equal(own.attn.preconditioner.gain, other.attn.preconditioner.gain.bfloat16())
    torch.testing.assert_close(again(TOKENS).logits.float(), model(TOKENS).logits, atol=3e-2, rtol=3e-2)


def test_a_configuration_of_ones_own(tmp_path: Path) -> None:
    model = saved(tmp_path)
    config = GPT2Config(**gpt2().config.to_dict() | {"attn_pdrop": 0.3})
    again = from_pretrained(AutoModelForCausalLM, tmp_path, config=config)
    assert again.config.attn_pdrop == 0.3
    assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)
    again = from_pretrained(GPT2LMHeadModel, None, config=tmp_path, state_dict=model.state_dict())
    assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)


def test_shards_and_bin_files(tmp_path: Path) -> None:
    model = saved(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = from_pretrained(AutoModelForCausalLM, tmp_path)
    assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)
    for path in tmp_path.glob("*.safetensors*"):
        path.unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    again = from_pretrained(AutoModelForCausalLM, tmp_path)
    assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)


def test_parts_on_other_devices(tmp_path: Path) -> None:
    model = saved(tmp_path)
    places = {"transformer.h.1": "disk", "transformer.h.0": "cpu", "transformer.wte": "cpu", "transformer.wpe": "cpu"}
    again = from_pretrained(
        AutoModelForCausalLM,
        tmp_path,
        device_map={**places, "transformer.ln_f": "cpu", "lm_head": "cpu"},
        offload_folder=tmp_path / "offload",
    )
    assert again.transformer.h[0].attn.preconditioner.gain.device.type == "cpu"
    assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)


def test_weights_of_other_shapes(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(RuntimeError, match="have other shapes than the model's"):
        from_pretrained(AutoModelForCausalLM, tmp_path, vocab_size=60)
    again = from_pretrained(AutoModelForCausalLM, tmp_path, vocab_size=60, ignore_mismatched_sizes=True)
    assert again.config.vocab_size == 60


def test_a_class_that_cannot_load(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="model_class must be a class of transformers"):
        from_pretrained(gpt2(), tmp_path)
    with pytest.raises(ValueError, match="config must be given where folder is None"):
        from_pretrained(GPT2LMHeadModel, None)


@register_quantization_config("replacing")
class _Replacing(QuantizationConfigMixin):
    def __init__(self, **kwargs: object) -> None:
        self.quant_method = "replacing"


class _Replaced(nn.Linear):
    pass


@register_quantizer("replacing")
class _ReplacingQuantizer(HfQuantizer):
    """Puts a layer of its own in the place of every linear one before weights are loaded, as quantizers do."""

    requires_calibration = False
    is_trainable = False

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: object) -> None:
        for module in list(model.modules()):
            for name, layer in list(module.named_children()):
                if type(layer) is nn.Linear:
                    shape = (layer.in_features, layer.out_features, layer.bias is not None)
                    setattr(module, name, _Replaced(*shape, device="meta"))

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: object) -> None:
        pass

    def is_serializable(self, **kwargs: object) -> bool:
        return True


def test_layers_that_a_quantizer_replaces_are_hooked_again(tmp_path: Path) -> None:
    model = BloomForCausalLM(BloomConfig(hidden_size=16, n_layer=2, n_head=2, vocab_size=50)).eval()
    precondition_(model, PreconditionConfig(gain=0.5))
    model.save_pretrained(tmp_path)
    again = from_pretrained(AutoModelForCausalLM, tmp_path, quantization_config=_Replacing())
    assert type(again.transformer.h[0].self_attention.dense) is _Replaced
    assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)
    restore_(again)
    assert not any(layer._forward_pre_hooks for layer in again.modules())


RESUMED = """
import sys, torch
model = torch.load(sys.argv[1], weights_only=False)
model.save_pretrained(sys.argv[2])
"""


def test_a_pickled_model_is_saved_as_what_it_is_by_a_process_that_imports_nothing_else(tmp_path: Path) -> None:
    model = BloomForCausalLM(BloomConfig(hidden_size=16, n_layer=1, n_head=2, vocab_size=50)).eval()
    precondition_(model)
    torch.save(model, tmp_path / "model.pt")
    subprocess.run([sys.executable, "-c", RESUMED, str(tmp_path / "model.pt"), str(tmp_path / "folder")], check=True)
    again = from_pretrained(AutoModelForCausalLM, tmp_path / "folder")
    assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
class MineConfig(LlamaConfig):
    model_type = "mine"
class Mine(LlamaForCausalLM):
    config_class = MineConfig
"""


BRINGS_ITS_OWN = """
import sys
sys.modules["preconditioned_attention"] = None
from transformers import AutoModelForCausalLM
AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).save_pretrained(sys.argv[2])
"""


def test_a_model_that_brings_its_own_code(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20}
    LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=50)).save_pretrained(tmp_path / "plain")
    (tmp_path / "plain" / "mine.py").write_text(CODE)
    auto_map = {"AutoConfig": "mine.MineConfig", "AutoModelForCausalLM": "mine.Mine"}
    rewrite(tmp_path / "plain", lambda content: content.update(model_type="mine", auto_map=auto_map))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", trust_remote_code=True)
    precondition_(model)
    model.save_pretrained(tmp_path / "converted")
    for trust in (None, False):
        with pytest.raises(ValueError, match="custom code"):
            AutoModelForCausalLM.from_pretrained(tmp_path / "converted", trust_remote_code=trust)
    script = [sys.executable, "-c", BRINGS_ITS_OWN, str(tmp_path / "converted"), str(tmp_path / "again")]
    subprocess.run(script, check=True)
    for name in ("converted", "again"):
        again = from_pretrained(AutoModelForCausalLM, tmp_path / name, trust_remote_code=True)
        assert type(again).__name__ == "Mine"
        assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)


@pytest.mark.parametrize("name", ["gpt2", "xlnet"])
def test_where_the_package_is_installed_trust_is_enough(name: str, tmp_path: Path) -> None:
    """The folder's own code hands over to the package, which serves every class, XLNet's swapped one too."""
    sizes = {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 20, "vocab_size": 50}
    model = gpt2() if name == "gpt2" else XLNetLMHeadModel(XLNetConfig(**sizes)).eval()
    precondition_(model, PreconditionConfig(gradient="stop", gain=2.0))
    model.save_pretrained(tmp_path)
    again, info = AutoModelForCausalLM.from_pretrained(
        tmp_path, trust_remote_code=True, device_map="auto", dtype="auto", output_loading_info=True
    )
    assert not any(info.values())
    assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)
    assert again.config.to_dict() == from_pretrained(type(model), tmp_path).config.to_dict()
    restore_(again)


def test_a_part_of_what_was_saved(tmp_path: Path) -> None:
    """Each tower of a CLIP alone, with the names that it has alone; the gains and marks prove which is which."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20}
    text = {**sizes, "vocab_size": 50, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1}
    config = CLIPConfig(text_config=text, vision_config={**sizes, "image_size": 16, "patch_size": 8}, projection_dim=8)
    pixels = torch.randn(1, 3, 16, 16)
    for marker in (True, False):
        model = CLIPModel(config).eval()
        precondition_(model, PreconditionConfig(gain=1.0), marker=marker)
        for module in model.modules():
            if hasattr(module, "preconditioner"):
                nn.init.uniform_(module.preconditioner.gain, 0.5, 2.0)
        model.save_pretrained(tmp_path)
        if not marker:
            with pytest.raises(ValueError, match="load the class that was saved, and take its part"):
                from_pretrained(CLIPVisionModel, tmp_path)
            continue
        vision, words = from_pretrained(CLIPVisionModel, tmp_path), from_pretrained(CLIPTextModel, tmp_path)
        assert torch.equal(vision(pixels).pooler_output, model.vision_model(pixels).pooler_output)
        assert torch.equal(words(TOKENS).pooler_output, model.text_model(TOKENS).pooler_output)
