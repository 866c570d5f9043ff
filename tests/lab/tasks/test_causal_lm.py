import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import default_collate

from preconditioned_attention import precondition_
from preconditioned_attention.conversion import from_pretrained
from preconditioned_attention.lab.data.python_reference import load_python_reference
from preconditioned_attention.lab.tasks.causal_lm import CausalLM

pytest.importorskip("transformers")
SMALL = {"n_layer": 2, "n_head": 2, "n_embd": 16, "context": 32, "vocab_size": 512, "dropout": 0.0}


@pytest.fixture(scope="module")
def task() -> CausalLM:
    return CausalLM(**SMALL)


def build(task: CausalLM) -> torch.nn.Module:
    torch.manual_seed(0)
    return task.build_model().eval()


def test_the_small_gpt2_of_the_notebook_has_its_published_size() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.device("meta"):
        config = GPT2Config(vocab_size=50257, n_positions=128, n_embd=384, n_layer=6, n_head=6)
        assert sum(parameter.numel() for parameter in GPT2LMHeadModel(config).parameters()) == 29_995_392


def test_the_model_is_the_one_that_was_asked_for(task: CausalLM) -> None:
    config = CausalLM(**{**SMALL, "dropout": 0.2}).build_model().config
    assert (config.n_layer, config.n_head, config.n_embd, config.n_positions, config.vocab_size) == (2, 2, 16, 32, 512)
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0.2, 0.2, 0.2)
    assert build(task)(*task.example_batch(3)).logits.shape == (3, 32, 512)


def test_every_byte_of_the_test_text_is_counted_once(task: CausalLM) -> None:
    text, test = load_python_reference().test, task.datasets().test
    model = build(task)
    values = {"nats": [], "tokens": [], "bytes": []}
    for start in range(0, len(test), 64):
        batch = default_collate([test[index] for index in range(start, min(start + 64, len(test)))])
        for name, numbers in task.evaluate(model, batch).items():
            values[name] += numbers
    assert sum(values["bytes"]) == sum(len(document.encode()) for document in text)
    assert sum(values["tokens"]) == sum(len(task._data.tokenizer.encode(document).ids) + 1 for document in text)
    scores = task.score(test, values)
    assert scores["loss"] == pytest.approx(sum(values["nats"]) / sum(values["tokens"]))
    assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]))
    bits = sum(values["nats"]) / math.log(2)
    assert scores["bits per byte"] == pytest.approx(bits / sum(values["bytes"]))


def test_the_nats_are_those_of_the_scored_targets(task: CausalLM) -> None:
    model, windows = build(task), task.datasets().validation
    inputs, targets = default_collate([windows[0], windows[1], windows[len(windows) - 1]])
    values = task.evaluate(model, (inputs, targets))
    for row, (nats, tokens) in enumerate(zip(values["nats"], values["tokens"], strict=True)):
        with torch.no_grad():
            log_probabilities = F.log_softmax(model(inputs[row : row + 1]).logits[0].double(), dim=-1)
        scored = [place for place in range(32) if targets[row, place] >= 0]
        assert tokens == len(scored)
        assert nats == pytest.approx(-sum(float(log_probabilities[p, targets[row, p]]) for p in scored), rel=1e-5)
    loss = task.loss(model, (inputs, targets))
    assert float(loss.detach()) == pytest.approx(sum(values["nats"]) / sum(values["tokens"]), rel=1e-5)


def test_two_byte_models_stand_beside_it(task: CausalLM) -> None:
    baselines = task.baselines()
    assert list(baselines) == ["Kneser-Ney 3-gram of bytes", "Kneser-Ney 5-gram of bytes"]
    assert 1.5 < baselines["Kneser-Ney 5-gram of bytes"] < baselines["Kneser-Ney 3-gram of bytes"] < 3.5
    assert {"Python", "sha256", "train tokens", "tokenizer"} <= set(task.describe_data())


def test_samples_are_the_same_every_time_and_leave_the_random_state(task: CausalLM) -> None:
    model = build(task)
    state = torch.get_rng_state()
    samples = task.samples(model)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert task.samples(model) == samples
    assert len(samples) == 2
    begun = samples["from the beginning of the test text"].removeprefix("<|endoftext|>")
    assert begun[:8] == load_python_reference().test[0][:8]


@pytest.mark.parametrize("preconditioned", [False, True])
def test_generation_with_a_cache_equals_generation_without(task: CausalLM, preconditioned: bool) -> None:
    model = build(task)
    if preconditioned:
        plain = model(*task.example_batch(1)).logits
        precondition_(model)
        assert not torch.allclose(model(*task.example_batch(1)).logits, plain)
    prompts = task.example_batch(4)[0][:, :5]
    with_cache, without = (
        model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=False,
            use_cache=use_cache,
            max_new_tokens=25,
            eos_token_id=None,
            pad_token_id=0,
        )
        for use_cache in (True, False)
    )
    assert with_cache.shape == (4, 30)
    assert torch.equal(with_cache, without)


def test_an_exported_model_comes_back_as_it_was(task: CausalLM, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = build(task)
    task.export(model, tmp_path / "plain")
    batch = task.example_batch(2)
    loaded = AutoModelForCausalLM.from_pretrained(str(tmp_path / "plain")).eval()
    assert torch.equal(loaded(*batch).logits, model(*batch).logits)
    precondition_(model)
    task.export(model, tmp_path / "preconditioned")
    loaded = from_pretrained(AutoModelForCausalLM, tmp_path / "preconditioned").eval()
    assert torch.equal(loaded(*batch).logits, model(*batch).logits)
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path / "preconditioned"))
    text = load_python_reference().test[0]
    assert tokenizer(text)["input_ids"] == task._data.tokenizer.encode(text).ids


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corpus": "books"}, "corpus must be one of"),
        ({"n_embd": 10, "n_head": 4}, "n_embd must be a multiple of n_head"),
        ({"vocab_size": 100}, "vocab_size must be at least 257"),
        ({"dropout": 1.0}, "dropout must be at least 0 and less than 1"),
        ({"corpus": "tiny-stories", "root": "x"}, "tokenizer must be given"),
    ],
)
def test_options_that_cannot_be(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CausalLM(**{**SMALL, **options})


def test_stories_need_a_folder() -> None:
    with pytest.raises(ValueError, match="root must be the folder that holds TinyStories"):
        CausalLM(corpus="tiny-stories", tokenizer="x.json").datasets()
