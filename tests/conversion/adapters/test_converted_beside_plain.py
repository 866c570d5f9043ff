"""Converted models of other libraries beside plain ones, and in the hands of transformers' `generate`."""

import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import cache_utils

from preconditioned_attention import precondition_, restore_
from tests.helpers.oracle import jitter_, normalizing_inside
from tests.helpers.plain_models import MODELS, build, numbers
from tests.helpers.transformers_cases import DECODERS, PAIRS, SHARED, Case


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """What the plain models compute in a process that never imports this project."""
    file = tmp_path_factory.mktemp("elsewhere") / "numbers.pt"
    command = [sys.executable, "-m", "tests.helpers.plain_models", str(file)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[3])
    return torch.load(file)


@pytest.mark.parametrize("name", MODELS)
def test_a_plain_model_beside_a_converted_one_is_as_in_a_fresh_process(name: str, elsewhere: dict[str, Tensor]) -> None:
    """Bit for bit: outputs, loss and gradients, before, between and after runs of its converted twin."""
    plain, twin = build(name), build(name)
    assert torch.equal(numbers(name, plain), elsewhere[name])
    precondition_(twin)
    converted = numbers(name, twin)
    assert torch.equal(numbers(name, plain), elsewhere[name])
    assert converted.shape == elsewhere[name].shape
    assert not torch.equal(converted, elsewhere[name]), "the conversion shows"
    built_later = build(name)
    assert torch.equal(numbers(name, built_later), elsewhere[name])
    restore_(twin)
    assert torch.equal(numbers(name, twin), elsewhere[name])


def padded() -> dict[str, Tensor]:
    """Two sequences of nine tokens; the second has three padding tokens on the left, as in generation."""
    ids = torch.randint(3, 40, (2, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 9, dtype=torch.int64)
    mask[1, :3] = 0
    return {"input_ids": ids, "attention_mask": mask}


def causal(name: str, config: dict[str, object]) -> Case:
    return Case(name, {**config, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}, model="AutoModelForCausalLM")


_WINDOW = {**SHARED, "sliding_window": 4}
_INDEXED = {
    **{key: value for key, value in DECODERS["deepseek_v3"].config.items() if key != "first_k_dense_replace"},
    "index_head_dim": 8,
    "index_n_heads": 2,
    "index_topk": 16,  # all tokens: which are chosen among equals is no matter of the cache
    "mlp_layer_types": ["dense", "dense"],
}
GENERATORS = {
    "gpt2": causal("gpt2", DECODERS["gpt2"].config),
    "llama": causal("llama", SHARED),
    "t5": Case("t5", PAIRS["t5"].config, model="AutoModelForSeq2SeqLM"),
    "mistral": causal("mistral", _WINDOW),
    "qwen2": causal(
        "qwen2", {**_WINDOW, "use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"]}
    ),
}
# Kinds of layers in a cache that those above do not have.
OTHER_LAYERS = {
    "qwen3_next": causal("qwen3_next", DECODERS["qwen3_next"].config),
    "deepseek_v32": causal("deepseek_v32", _INDEXED),
    "falcon_h1": causal(
        "falcon_h1",
        {
            **SHARED,
            "mamba_d_ssm": 32,
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            # attention stands beside a recurrence, and is to be heard
            "attention_out_multiplier": 20.0,
            "ssm_out_multiplier": 0.05,
            "embedding_multiplier": 0.1,
        },
    ),
}


class Stream:
    """In the place of an accelerator's stream where there is none: offloading then copies within the memory."""

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def wait_stream(self, other: object) -> None: ...


def generated(model: nn.Module, given: dict[str, Tensor], beams: int, **options: object) -> Tensor:
    """Six tokens for each sequence, the most likely ones."""
    return model.generate(
        **given, min_new_tokens=6, max_new_tokens=6, do_sample=False, num_beams=beams, pad_token_id=0, **options
    )


def far_from_zero(case: Case) -> nn.Module:
    """So that what is generated depends on the attention."""
    return jitter_(case.build(), 0.5)


CACHES = ["dynamic", "static", "offloaded", "offloaded_static"]


@pytest.mark.parametrize("beams", [1, 3])
# Upstream looks in vain for a layer to fetch where all have windows, which stay where they are.
@pytest.mark.parametrize(
    ("name", "cache"), [pair for pair in product(GENERATORS, CACHES) if pair != ("mistral", "offloaded_static")]
)
def test_generation_with_a_cache_equals_generation_without(
    name: str, cache: str, beams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if cache.startswith("offloaded") and not torch.cuda.is_available():
        monkeypatch.setattr(torch, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "default_stream", lambda device: Stream())
    model, given = far_from_zero(GENERATORS[name]), padded()
    plain = generated(model, given, beams)
    precondition_(model)
    expected = generated(model, given, beams, use_cache=False)
    assert not torch.equal(expected, plain), "the conversion shows"
    assert torch.equal(generated(model, given, beams, cache_implementation=cache), expected)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", OTHER_LAYERS)
def test_generation_with_layers_of_other_kinds(name: str, cache: str) -> None:
    model, given = far_from_zero(OTHER_LAYERS[name]), padded()
    plain = generated(model, given, 1)
    precondition_(model)
    expected = generated(model, given, 1, use_cache=False)
    assert not torch.equal(expected, plain), "the conversion shows"
    assert torch.equal(generated(model, given, 1, cache_implementation=cache), expected)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_generation_with_a_quantized_cache(name: str, beams: int) -> None:
    """It rounds, so that it is held against the same cache in a model that normalizes inside its attention."""
    model, given = far_from_zero(GENERATORS[name]), padded()
    options = {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}}
    plain = generated(model, given, beams, **options)
    report = precondition_(model)
    actual = generated(model, given, beams, **options)
    classes = {type(model.get_submodule(entry.path)) for entry in report.converted}
    restore_(model)
    with normalizing_inside(model, *classes):
        expected = generated(model, given, beams, **options)
    assert torch.equal(actual, expected)
    assert not torch.equal(actual, plain), "the conversion shows"


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_assisted_generation(name: str) -> None:
    """Guesses from the prompt, checked several at a time: the cache is cropped where they were wrong."""
    model, given = far_from_zero(GENERATORS[name]), {key: value[:1] for key, value in padded().items()}
    precondition_(model)
    expected = generated(model, given, 1, use_cache=False)
    assert torch.equal(generated(model, given, 1, prompt_lookup_num_tokens=2), expected)


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_generation_goes_on_when_the_implementation_is_switched(name: str) -> None:
    """And with attention weights asked for, which are computed on another way."""
    model, given = far_from_zero(GENERATORS[name]), {key: value[:1] for key, value in padded().items()}
    precondition_(model)
    expected = generated(model, given, 1, use_cache=False)
    model.set_attn_implementation("eager")
    out = generated(model, given, 1, output_attentions=True, return_dict_in_generate=True)
    assert torch.equal(out.sequences, expected)
    assert all(weights is not None for step in out.attentions for weights in step)


@pytest.mark.slow
def test_no_kind_of_cache_is_left_out() -> None:
    """Fails when a new transformers has a new one."""
    seen: set[type] = set()
    for case in [*GENERATORS.values(), *OTHER_LAYERS.values()]:
        model = far_from_zero(case)
        precondition_(model)
        for cache in ("dynamic", "static"):
            out = generated(model, padded(), 1, cache_implementation=cache, return_dict_in_generate=True)
            caches = [out.past_key_values]
            if isinstance(caches[0], cache_utils.EncoderDecoderCache):
                caches += [caches[0].self_attention_cache, caches[0].cross_attention_cache]
            seen |= {type(cache) for cache in caches}
            seen |= {type(layer) for cache in caches for layer in getattr(cache, "layers", ())}
    kinds = {*cache_utils.DYNAMIC_LAYER_TYPE_MAPPING.values(), *cache_utils.STATIC_LAYER_TYPE_MAPPING.values()}
    caches = {cls for cls in vars(cache_utils).values() if isinstance(cls, type) and issubclass(cls, cache_utils.Cache)}
    elsewhere = {"Cache", "QuantizedCache"}  # the base, and what has a test of its own
    elsewhere |= {"MtpCache", "DFlashCache"}  # dynamic caches with an offset, for models that draft for themselves
    elsewhere |= {"DummyLayer"}  # a place that is not filled
    # a window beside a recurrence in one layer: no small model of it runs here
    elsewhere |= {name for name in dir(cache_utils) if name.startswith("LinearAttentionAnd") and "Sliding" in name}
    assert {cls.__name__ for cls in (kinds | caches) - seen} == elsewhere
