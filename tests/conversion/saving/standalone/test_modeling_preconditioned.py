"""Folders of converted models in a process in which this package cannot be imported."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import transformers
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BloomConfig,
    BloomForCausalLM,
    CLIPConfig,
    CLIPModel,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from preconditioned_attention import PreconditionConfig, precondition_
from preconditioned_attention.conversion import Layout
from preconditioned_attention.conversion.saving.standalone import modeling_preconditioned as standalone
from preconditioned_attention.equilibration import equilibrate_by_formula
from preconditioned_attention.layers import Preconditioner
from tests.helpers.former import FORMER

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
TEXT = {**SIZES, "vocab_size": 50, "max_position_embeddings": 16}
IMAGE = {**SIZES, "image_size": 16, "patch_size": 8}


def xlnet() -> nn.Module:
    """Attention of its own, converted by a hook."""
    config = transformers.XLNetConfig(d_model=32, n_layer=2, n_head=4, d_inner=40, vocab_size=50)
    return transformers.XLNetLMHeadModel(config)


# Most through the attention interface, Bloom by a pre-hook, DeBERTa by a forward hook, XLNet by a class swap. The
# model, the Auto class that builds it, and concrete classes that may be asked to load its folder.
MODELS: dict[str, tuple[Callable[[], nn.Module], str, list[str]]] = {
    "llama": (
        lambda: LlamaForCausalLM(LlamaConfig(**TEXT, num_key_value_heads=2)),
        "AutoModelForCausalLM",
        ["LlamaForCausalLM", "LlamaModel"],
    ),
    "gpt2": (
        lambda: GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=24, n_head=3, vocab_size=50, n_positions=16)),
        "AutoModelForCausalLM",
        ["GPT2LMHeadModel"],
    ),
    "bert": (lambda: BertForMaskedLM(BertConfig(**TEXT)), "AutoModelForMaskedLM", ["BertForMaskedLM", "BertModel"]),
    "vit": (
        lambda: ViTForImageClassification(ViTConfig(**IMAGE)),
        "AutoModelForImageClassification",
        ["ViTForImageClassification"],
    ),
    "t5": (
        lambda: T5ForConditionalGeneration(
            T5Config(d_model=32, d_kv=8, d_ff=40, num_layers=2, num_heads=4, vocab_size=50, decoder_start_token_id=0)
        ),
        "AutoModelForSeq2SeqLM",
        ["T5ForConditionalGeneration", "T5EncoderModel"],
    ),
    "clip": (
        lambda: CLIPModel(CLIPConfig(text_config=TEXT, vision_config=IMAGE, projection_dim=8)),
        "AutoModel",
        ["CLIPModel", "CLIPVisionModel", "CLIPTextModelWithProjection"],
    ),
    "bloom": (
        lambda: BloomForCausalLM(BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=50)),
        "AutoModelForCausalLM",
        ["BloomForCausalLM"],
    ),
    "deberta": (
        lambda: DebertaV2ForMaskedLM(DebertaV2Config(**TEXT)),
        "AutoModelForMaskedLM",
        ["DebertaV2ForMaskedLM"],
    ),
    "xlnet": (xlnet, "AutoModelForCausalLM", ["XLNetLMHeadModel"]),
}
TOKENS, PIXELS = torch.arange(10).view(1, 10), torch.linspace(-1, 1, 768).view(1, 3, 16, 16)
INPUTS: dict[str, dict[str, torch.Tensor]] = {
    "vit": {"pixel_values": PIXELS},
    "clip": {"input_ids": TOKENS, "pixel_values": PIXELS},
    "t5": {"input_ids": TOKENS, "decoder_input_ids": TOKENS},
}

ELSEWHERE = """
import json, sys, warnings
sys.modules["preconditioned_attention"] = None  # as where it is not installed
import torch, transformers
from pathlib import Path
transformers.logging.set_verbosity_error()
root, models = Path(sys.argv[1]), json.loads(sys.argv[2])

def attempt(load, **kwargs):
    try:
        load(**kwargs)
    except (ValueError, ImportError) as error:
        return str(error)
    return "loaded"

said = {}
for name, (auto, concrete) in models.items():
    folder, auto_class = str(root / name), getattr(transformers, auto)
    here = said[name] = {"refused": {}}
    loaders = {c: getattr(transformers, c).from_pretrained for c in [auto, "AutoModel", "AutoConfig", *concrete]}
    for c, load in loaders.items():
        here["refused"][c] = attempt(lambda **kw: load(folder, **kw))
        if not c.startswith("Auto"):
            here["refused"][c + " eager"] = attempt(lambda **kw: load(folder, **kw), attn_implementation="eager")
    config = attempt(lambda: transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True))
    here["trusted"] = attempt(lambda: auto_class.from_pretrained(folder, trust_remote_code=True))
    if here["trusted"] != "loaded":
        continue
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    here["refused"]["from_config"] = attempt(lambda: auto_class.from_config(config))
    here["refused"]["config="] = attempt(lambda: loaders[concrete[0]](folder, config=config))
    model, info = auto_class.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    here["info"] = {key: len(value) for key, value in info.items()}
    here["config"] = model.config.to_dict()
    saved = torch.load(root / f"{name}.pt")
    output = model(**saved["inputs"])
    here["difference"] = (saved["output"] - getattr(output, saved["name"])).abs().max().item()
    model.save_pretrained(root / f"{name}-again")
    here["refused"]["again"] = attempt(lambda: auto_class.from_pretrained(str(root / f"{name}-again")))
    again = auto_class.from_pretrained(str(root / f"{name}-again"), trust_remote_code=True)
    here["again"] = bool(torch.equal(getattr(again(**saved["inputs"]), saved["name"]), getattr(output, saved["name"])))
    fresh = auto_class.from_config(config, trust_remote_code=True)
    here["fresh"] = sum(hasattr(module, "preconditioner") for module in fresh.modules())
(root / "said.json").write_text(json.dumps(said, default=str))
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What happens to every folder there."""
    root = tmp_path_factory.mktemp("folders")
    for name, (build, _, _) in MODELS.items():
        torch.manual_seed(0)
        model = build().eval()
        precondition_(model, PreconditionConfig(gain=1.5, gradient="stop"))
        for module in model.modules():
            if hasattr(module, "preconditioner"):
                nn.init.uniform_(module.preconditioner.gain, 0.5, 2.0)
        model.save_pretrained(root / name)
        inputs = INPUTS.get(name, {"input_ids": TOKENS})
        field = "logits_per_image" if name == "clip" else "logits"
        torch.save({"inputs": inputs, "name": field, "output": model(**inputs)[field].detach()}, root / f"{name}.pt")
    models = {name: (auto, concrete) for name, (_, auto, concrete) in MODELS.items()}
    run = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(root), json.dumps(models)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads((root / "said.json").read_text())


@pytest.mark.parametrize("name", MODELS)
def test_a_plain_loader_is_refused(name: str, elsewhere: dict) -> None:
    said = elsewhere[name]["refused"]
    assert len(said) >= 4
    for loader, message in said.items():
        assert "custom code" in message or "preconditioned_attention" in message, (loader, message)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "xlnet"])
def test_with_trust_it_loads_right(name: str, elsewhere: dict) -> None:
    here = elsewhere[name]
    assert here["trusted"] == "loaded"
    assert set(here["info"].values()) == {0}
    assert here["difference"] < 1e-5
    assert here["again"], "and what it saves loads there again"
    assert here["fresh"] == here["config"].get("num_hidden_layers", 2) * {"t5": 3, "clip": 2}.get(name, 1)
    assert "preconditioned" not in json.dumps(here["config"]), "in memory the configuration is the plain one"


def test_what_cannot_be_described_asks_for_the_package(elsewhere: dict) -> None:
    assert "pip install preconditioned-attention" in elsewhere["xlnet"]["trusted"]


@pytest.mark.parametrize("gradient", ["full", "stop"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_rows_and_gradients(gradient: str, dtype: torch.dtype) -> None:
    """Against the reference, over rows whose squares overflow or vanish, and zero rows."""
    options = FORMER | {"gradient": gradient, "gain": 1.0}
    c = standalone.Preconditioner(options, {"num_heads": 3}, True, torch.empty(0, dtype=dtype))
    sizes = {torch.float16: [1.0, 1e-3, 3e4, 0.0], torch.float32: [1.0, 1e-30, 1e30, 0.0]}
    scales = torch.tensor(sizes.get(dtype, [1.0, 1e-200, 1e200, 0.0]), dtype=dtype)
    assert c.gain is not None
    nn.init.uniform_(c.gain, 0.5, 2.0)
    x = (torch.randn(2, 3, 4, 5, dtype=dtype).clamp(-2, 2) * scales.view(-1, 1)).requires_grad_()
    g = torch.randn_like(x)
    for_x, for_gain = torch.autograd.grad(c(x), (x, c.gain), g)
    expected = equilibrate_by_formula(x, gradient=gradient, eps=None, gain=c.gain)
    expected_x, expected_gain = torch.autograd.grad(expected, (x, c.gain), g)
    torch.testing.assert_close(c(x), expected)
    torch.testing.assert_close(for_x, expected_x)
    torch.testing.assert_close(for_gain, expected_gain)


LAYOUTS = [
    (Layout(head_dim=4), (2, 5, 12)),
    (Layout(num_heads=3), (2, 5, 12)),
    (Layout(head_dim=4, interleaved=True), (2, 5, 12)),
    (Layout(num_heads=3, interleaved=True, width=12), (2, 5, 20)),
    (Layout(head_dim=4, width=12), (2, 5, 17)),
    (Layout(head_dim=4, form="channels"), (2, 12, 3, 5)),
    (Layout(form="split"), (2, 3, 5, 4)),
    (Layout(form="tokens", num_heads=3), (2, 5, 3, 4)),
]


@pytest.mark.parametrize(("layout", "shape"), LAYOUTS, ids=str)
def test_layouts_are_read_as_the_package_reads_them(layout: Layout, shape: tuple[int, ...]) -> None:
    described = dataclasses.asdict(layout)
    assert set(described) == {"head_dim", "form", "interleaved", "width", "num_heads"}, "what the file knows of"
    options = {"gradient": "full", "placement": "pre_skip", "eps": None, "gain": 1.0}
    c = standalone.Preconditioner(options, {"num_heads": 3}, True, torch.empty(0, dtype=torch.float64))
    own = Preconditioner(PreconditionConfig(gain=1.0), num_heads=3, dtype=torch.float64)
    gain = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    own.load_state_dict(c.state_dict() | {"gain": gain})
    c.load_state_dict(own.state_dict())
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(standalone._on_layout(c, described, x), layout.apply(own, x))
