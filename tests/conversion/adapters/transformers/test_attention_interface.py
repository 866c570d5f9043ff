import ast
import copy
import importlib
import importlib.util
import inspect
import io
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from preconditioned_attention import PreconditionConfig, precondition_, restore_
from preconditioned_attention.conversion.adapter import UnsupportedAdapter
from preconditioned_attention.conversion.adapters.transformers.tables import HOOKS
from preconditioned_attention.conversion.adapters.transformers.unsupported import UNSUPPORTED
from preconditioned_attention.conversion.model_factory import build_without_weights
from preconditioned_attention.conversion.plan import plan_conversion
from preconditioned_attention.conversion.registry import find_adapter
from preconditioned_attention.conversion.source_texts.known_texts import reviewed_versions
from tests.helpers.explicit import attention_rows, diagonal_product, relative_error
from tests.helpers.transformers_cases import (
    AUDIO,
    DECODERS,
    DISPATCHING,
    ENCODERS,
    MULTIMODAL,
    PAIRS,
    VISION,
    check,
    wave,
)
from tests.helpers.transformers_hook_cases import HOOKED

SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32, "vocab_size": 40}
VIT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32, "image_size": 16}
GPT2 = {
    "n_embd": 24,
    "n_layer": 2,
    "n_head": 4,
    "vocab_size": 40,
    "n_positions": 32,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def build(name: str, **options) -> nn.Module:
    torch.manual_seed(0)
    configs = {
        "bert": lambda: transformers.BertModel(transformers.BertConfig(**SIZES, **options)),
        "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2, **options)),
        "vit": lambda: transformers.ViTModel(transformers.ViTConfig(**VIT, patch_size=4, **options)),
        "llama": lambda: transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**SIZES, num_key_value_heads=2, **options)
        ),
        "mistral": lambda: transformers.MistralForCausalLM(
            transformers.MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=3, **options)
        ),
        "t5": lambda: transformers.T5EncoderModel(
            transformers.T5Config(d_model=24, d_kv=6, d_ff=32, num_layers=2, num_heads=4, vocab_size=40, **options)
        ),
    }
    return configs[name]().double().eval()


def tokens(padded: bool) -> dict[str, Tensor]:
    """Two sequences of nine tokens; the second has three padding tokens, on the left as in generation."""
    ids = torch.randint(0, 40, (2, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 9, dtype=torch.int64)
    if padded:
        mask[1, :3] = 0
    return {"input_ids": ids, "attention_mask": mask}


def inputs(name: str, padded: bool = False) -> dict[str, Tensor]:
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return {"pixel_values": images} if name == "vit" else tokens(padded)


class NormalizeAttention(TorchFunctionMode):
    """An independent oracle: a plain model under it computes preconditioned attention, masks and all."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        return diagonal_product(out) if func is F.scaled_dot_product_attention else out


MODELS = ["bert", "gpt2", "vit", "llama", "mistral", "t5"]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_whole_models_against_the_oracle(name: str, padded: bool) -> None:
    model, given = build(name), inputs(name, padded)
    with NormalizeAttention():
        expected = model(**given)[0]
    plain = model(**given)[0]
    report = precondition_(model, strict=True)
    assert (len(report.converted), report.entries[0].num_heads, report.entries[0].head_dim) == (2, 4, 6)
    out = model(**given)[0]
    assert relative_error(out, expected) <= 1e-12
    assert relative_error(out, plain) > 1e-3
    restore_(model)
    assert torch.equal(model(**given)[0], plain)


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (-1, 6)).transpose(1, 2)


def merged(rows: Tensor) -> Tensor:
    return diagonal_product(rows).transpose(1, 2).flatten(2)


def test_bert_by_hand() -> None:
    model = build("bert")
    precondition_(model)
    module, x = model.encoder.layer[0].attention.self, torch.randn(2, 9, 24, dtype=torch.float64)
    padding = torch.rand(2, 1, 9, 9) > 0.3
    expected = merged(attention_rows(heads(module.query(x)), heads(module.key(x)), heads(module.value(x)), padding))
    assert relative_error(module(x, attention_mask=padding)[0], expected) <= 1e-12


def test_gpt2_by_hand() -> None:
    model = build("gpt2")
    precondition_(model)
    module, x = model.transformer.h[0].attn, torch.randn(2, 9, 24, dtype=torch.float64)
    q, k, v = (heads(part) for part in module.c_attn(x).chunk(3, dim=-1))
    causal = torch.ones(9, 9, dtype=torch.bool).tril()
    assert relative_error(module(x)[0], module.c_proj(merged(attention_rows(q, k, v, causal)))) <= 1e-12


def test_vit_by_hand() -> None:
    model = build("vit")
    precondition_(model)
    module = next(m for m in model.modules() if type(m).__name__ == "ViTAttention")
    x = torch.randn(2, 9, 24, dtype=torch.float64)
    rows = attention_rows(heads(module.q_proj(x)), heads(module.k_proj(x)), heads(module.v_proj(x)))
    assert relative_error(module(x)[0], module.o_proj(merged(rows))) <= 1e-12


def test_llama_by_hand() -> None:
    model = build("llama")
    precondition_(model)
    module, x = model.model.layers[0].self_attn, torch.randn(2, 9, 24, dtype=torch.float64)
    cos, sin = model.model.rotary_emb(x, torch.arange(9)[None])
    q, k = apply_rotary_pos_emb(heads(module.q_proj(x)), heads(module.k_proj(x)), cos, sin)
    rows = attention_rows(q, k, heads(module.v_proj(x)), torch.ones(9, 9, dtype=torch.bool).tril())
    out = module(x, position_embeddings=(cos, sin), attention_mask=None)[0]
    assert relative_error(out, module.o_proj(merged(rows))) <= 1e-12


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5", "vit"])
def test_stays_converted_when_the_implementation_is_switched(name: str) -> None:
    # The eager attention of llama and vit takes its softmax in float32, whatever the dtype: less exact here, and NaN
    # in fully padded rows, where float64's lowest number overflows, converted or not.
    model, given = build(name), inputs(name, padded=name != "llama")
    precondition_(model)
    expected = model(**given)[0]
    model.set_attn_implementation("eager")
    assert relative_error(model(**given)[0][:, 3:], expected[:, 3:]) <= (1e-6 if name in ("llama", "vit") else 1e-12)
    out = model(**given, output_attentions=True)
    assert all(weights is not None for weights in out.attentions)


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_switched_to_flex_attention(name: str) -> None:
    """transformers compiles it, which on the CPU means without gradients and not in float64."""
    model, given = build(name), inputs(name, padded=True)
    precondition_(model)
    expected = model(**given)[0]
    model.float().set_attn_implementation("flex_attention")
    with torch.no_grad():
        out = model(**given)[0]
    assert relative_error(out.double(), expected) <= 1e-6


def test_only_the_converted_model_is() -> None:
    other, model, given = build("bert"), build("bert"), inputs("bert")
    before = other(**given)[0]
    precondition_(model, filter_fn=lambda module, path: "layer.1" in path)
    assert torch.equal(other(**given)[0], before)
    assert torch.equal(
        model.encoder.layer[0](torch.ones(1, 4, 24).double()), other.encoder.layer[0](torch.ones(1, 4, 24).double())
    )


def test_gain_is_per_head() -> None:
    model, given = build("bert"), inputs("bert")
    precondition_(model, PreconditionConfig(gain=1.0))
    module, x = model.encoder.layer[0].attention.self, torch.randn(2, 9, 24, dtype=torch.float64)
    before = module(x)[0]
    with torch.no_grad():
        module.preconditioner.gain.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    factor = torch.tensor([1.0, 2.0, 3.0, 4.0]).double().repeat_interleave(6)
    assert relative_error(module(x)[0], before * factor) <= 1e-14
    model(**given)[0].sum().backward()
    assert module.preconditioner.gain.grad.abs().min() > 0


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_compiles_in_one_graph(name: str) -> None:
    model, given = build(name), {"input_ids": inputs(name)["input_ids"]}
    precondition_(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert relative_error(compiled(**given)[0], model(**given)[0]) <= 1e-12


def test_deepcopy_pickle_and_a_fresh_process(tmp_path) -> None:
    model, given = build("bert"), inputs("bert", padded=True)
    precondition_(model)
    expected = model(**given)[0]
    assert torch.equal(copy.deepcopy(model)(**given)[0], expected)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(**given)[0], expected)
    torch.save((model, given, expected), tmp_path / "model.pt")
    script = f"""
        import torch
        model, given, expected = torch.load({str(tmp_path / "model.pt")!r}, weights_only=False)
        assert torch.allclose(model(**given)[0], expected, rtol=1e-12, atol=1e-13)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_attention_weights_are_those_of_the_plain_model(name: str) -> None:
    """In the first layer, which sees the same input: the method scales what the weights mix, not the weights."""
    model, given = build(name, attn_implementation="eager"), inputs(name)
    plain = model(**given, output_attentions=True).attentions
    precondition_(model)
    converted = model(**given, output_attentions=True).attentions
    assert torch.equal(converted[0], plain[0])
    assert not torch.equal(converted[1], plain[1])


def test_a_model_of_differential_attention_is_refused() -> None:
    config = transformers.DiffLlamaConfig(**SIZES, num_key_value_heads=2)
    with pytest.raises(ValueError, match=r"nothing to convert[\s\S]*differential attention subtracts"):
        precondition_(transformers.DiffLlamaModel(config))
    gpt2 = build("gpt2", reorder_and_upcast_attn=True)
    with pytest.raises(ValueError, match="set it to False"):
        precondition_(gpt2)


class OtherAttention(nn.Module):
    def forward(self, hidden_states: Tensor, **_: object) -> tuple[Tensor, None]:
        return F.scaled_dot_product_attention(hidden_states, hidden_states, hidden_states), None


def test_attention_that_nobody_knows_is_listed() -> None:
    model = build("llama")
    model.model.layers[1].self_attn = OtherAttention()
    with pytest.raises(ValueError, match=r"left out; nothing was changed[\s\S]*OtherAttention +- +- +- +unknown"):
        precondition_(model, strict=True)
    report = precondition_(model)
    assert [entry.status for entry in report.entries] == ["converted", "unknown"]


def copied_attention(folder: Path, name: str, change: tuple[str, str] = ("", "")) -> type[nn.Module]:
    """Llama's attention, copied into a file as the code of a checkpoint's author is, with one line changed."""
    imports = (
        "from transformers.models.llama.modeling_llama import *\nfrom transformers.models.llama import modeling_llama"
    )
    names = "globals().update({k: v for k, v in vars(modeling_llama).items() if not k.startswith('__')})"
    text = textwrap.dedent(inspect.getsource(modeling_llama.LlamaAttention))
    assert change[0] in text
    text = text.replace("class LlamaAttention", "class AuthorsAttention").replace(*change)
    (folder / f"{name}.py").write_text(f"{imports}\n{names}\n\n\n{text}")
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module.AuthorsAttention


def test_a_copy_of_a_known_text_is_served(tmp_path: Path) -> None:
    model, given = build("llama"), inputs("llama")
    with NormalizeAttention():
        expected = model(**given)[0]
    for layer in model.model.layers:
        layer.self_attn.__class__ = copied_attention(tmp_path, "author_of_a_copy")
    assert len(precondition_(model, strict=True).converted) == 2
    assert relative_error(model(**given)[0], expected) <= 1e-12


AFTER = "attn_output = attn_output.reshape(*input_shape, -1).contiguous()"
CHANGES = {
    "normalized": (AFTER, f"attn_output = nn.functional.normalize(attn_output, dim=-1); {AFTER}"),
    "mixed": (AFTER, f"attn_output = attn_output.mean(dim=1, keepdim=True).expand_as(attn_output); {AFTER}"),
    "other queries": ("self.q_proj(hidden_states)", "self.k_proj(hidden_states)"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_only_looks_its_function_up_is_unknown(change: str, tmp_path: Path) -> None:
    """Nobody has read what it does with the result."""
    model = build("llama")
    model.model.layers[1].self_attn.__class__ = copied_attention(tmp_path, f"author_{len(change)}", CHANGES[change])
    report = plan_conversion(model)
    assert [entry.status for entry in report.entries] == ["converted", "unknown"]
    assert f"were read in {reviewed_versions('transformers')}: what it returns may not be the heads' outputs" in str(
        report
    )
    with pytest.raises(ValueError, match="left out; nothing was changed"):
        precondition_(model, strict=True)


def test_mixtures_of_the_residual_stream_are_no_attention_of_heads() -> None:
    """They look their function up as attention does; one of them came with 5.24."""
    name = "transformers.models.inkling2_loop.modeling_inkling2_loop"
    for cls in ("Inkling2LoopBlockAttentionResidual", "Inkling2LoopMessageAttentionResidual"):
        found = getattr(importlib.import_module(name), cls)
        assert isinstance(find_adapter(found.__new__(found)), UnsupportedAdapter)
        renamed = type(f"Other{cls}", (nn.Module,), {"forward": found.forward})
        assert find_adapter(renamed()) is None
        assert plan_conversion(renamed()).entries[0].status == "unknown"


@pytest.mark.parametrize(("name", "attention"), [("sam", "SamAttention"), ("edgetam_video", "Sam2MultiScaleAttention")])
def test_the_shape_is_that_of_the_heads_where_their_width_changes(name: str, attention: str) -> None:
    """What a projection takes in, where the width of the model tells another."""
    model = build_without_weights(name)
    entries = [entry for entry in plan_conversion(model).entries if entry.class_name.endswith(f".{attention}")]
    assert len(entries) > 3
    for entry in entries:
        module = model.get_submodule(entry.path)
        merged = (module.out_proj if attention == "SamAttention" else module.proj).in_features
        assert entry.num_heads * entry.head_dim == merged


SLICE = ["modernbert", "deepseek_v3", "whisper", "swin"]  # a quick one of each sort; the rest are slow


@pytest.mark.parametrize("name", SLICE)
def test_tiny_models(name: str) -> None:
    check(DISPATCHING[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(DISPATCHING) - set(SLICE)))
def test_more_tiny_models(name: str) -> None:
    check(DISPATCHING[name])


SORTS = {
    "encoder": ENCODERS,
    "decoder": DECODERS,
    "encoder and decoder": PAIRS,
    "vision": VISION,
    "audio": AUDIO,
    "multimodal": MULTIMODAL,
}


def test_the_zoo_is_wide() -> None:
    """Sixty architectures, of every sort; whatever takes a padding mask gets padding."""
    zoo = DISPATCHING | HOOKED
    counts = {sort: len({case.model_type for case in cases.values()}) for sort, cases in SORTS.items()}
    print({"all": len({case.model_type for case in zoo.values()}), **counts})
    assert len({case.model_type for case in zoo.values()}) >= 60
    assert set(DISPATCHING) == {name for cases in SORTS.values() for name in cases}
    assert all(count >= 6 for count in counts.values())
    padded = {name for name, case in zoo.items() if "attention_mask" in (given := case.inputs()) and is_padded(given)}
    texts = {name for name, case in zoo.items() if "input_ids" in case.inputs()}
    sounds = {name for name, case in zoo.items() if case.inputs == wave}
    # CPM-Ant pads on its own account, and Nystromformer with landmarks fails on padding, converted or not
    assert texts | sounds - {"cpmant", "nystromformer"} <= padded | {"cpmant", "nystromformer"}


def is_padded(given: dict[str, Tensor]) -> bool:
    """Whether its mask leaves tokens out."""
    return bool((given["attention_mask"] == 0).any())


def looks_up(node: ast.AST) -> bool:
    """Whether code names `ALL_ATTENTION_FUNCTIONS.get_interface`."""
    return any(isinstance(part, ast.Attribute) and part.attr == "get_interface" for part in ast.walk(node))


def dispatching_methods() -> Iterator[tuple[str, str, ast.FunctionDef]]:
    """Module, class and source of every method in transformers' model files that looks its attention up."""
    folder = Path(transformers.__file__).parent / "models"
    for path in sorted(folder.glob("*/modeling_*.py")):
        source = path.read_text()
        if "get_interface(" not in source:
            continue
        module = f"transformers.models.{path.parent.name}.{path.stem}"
        for cls in (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)):
            for method in (node for node in cls.body if isinstance(node, ast.FunctionDef) and looks_up(node)):
                yield module, cls.name, method


def found_function_calls(method: ast.FunctionDef) -> list[ast.Call]:
    """The calls of the function that the look-up of ``method`` returned."""
    assigned = [
        node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
        for node in ast.walk(method)
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None and looks_up(node.value)
    ]
    names = {target.id for target in assigned if isinstance(target, ast.Name)}
    calls = (node for node in ast.walk(method) if isinstance(node, ast.Call))
    return [call for call in calls if isinstance(call.func, ast.Name) and call.func.id in names]


@pytest.mark.slow
def test_every_dispatching_method_is_classified() -> None:
    """Each is served or refused with a reason; each calls what it found with itself, where the preconditioner is.

    Two methods go on without the look-up under an option that the adapter refuses; those that index the table of
    functions go by pre-hook.
    """
    methods = list(dispatching_methods())
    refused, hooked, goes_around = set(), set(), set()
    counts: Counter[str] = Counter()
    for module, name, method in methods:
        cls = getattr(importlib.import_module(module), name)
        adapter = find_adapter(cls.__new__(cls))
        assert adapter is not None, (module, name)
        calls = found_function_calls(method)
        # several calls: one for flash attention, and one for every part of a packed sequence otherwise
        if isinstance(adapter, UnsupportedAdapter):
            refused.add(name)
            assert adapter.unsupported_reason(cls.__new__(cls)) == UNSUPPORTED[f"{module}.{name}"].reason
            counts["refused"] += 1
            continue
        alternatives = "is_flash_attention_requested" in ast.unparse(method)
        assert len(calls) == 1 or (calls and alternatives), (module, name)
        assert all(isinstance(call.args[0], ast.Name) and call.args[0].id == "self" for call in calls), (module, name)
        counts["exact"] += 1
        assert not adapter.definition, (module, name)
        if adapter.mechanism != "attention interface":
            hooked.add(name)
        elif "reorder_and_upcast_attn" in ast.unparse(method):
            goes_around.add(name)
        assert "ALL_ATTENTION_FUNCTIONS[" not in ast.unparse(method) or name in hooked, (module, name)
    assert refused == {
        "DiffLlamaAttention",
        "Florence2VisionChannelAttention",
        "Inkling2BlockAttentionResidual",
        "Inkling2LoopBlockAttentionResidual",
        "Inkling2LoopMessageAttentionResidual",
        "MuseSparkTextAttention",
    }
    assert goes_around == {"GPT2Attention", "DecisionTransformerGPT2Attention"}
    assert hooked == {name.rpartition(".")[2] for name, row in HOOKS.items() if row.hook_targets == ("o_proj",)}
    print(f"transformers {transformers.__version__}, dispatching methods:", dict(counts))
    if transformers.__version__ == "5.23.0":
        assert counts == {"exact": 443, "refused": 2}
