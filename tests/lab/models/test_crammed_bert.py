import dataclasses
import json
import math
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from preconditioned_attention import ConditionMonitor, PreconditionConfig, is_preconditioned, precondition_, restore_
from preconditioned_attention.lab.models.crammed_bert import (
    CrammedBert,
    CrammedBertConfig,
    load_crammed_bert,
    save_crammed_bert,
    sinusoids,
)

SMALL = CrammedBertConfig(vocab_size=50, width=16, layers=2, num_heads=2, feed_forward=24)


def build(**options: object) -> CrammedBert:
    torch.manual_seed(0)
    return CrammedBert(SMALL, **options).double().eval()  # type: ignore[arg-type]


def test_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in CrammedBert(CrammedBertConfig()).parameters()) == 119_589_889


def by_hand(model: CrammedBert, ids: torch.Tensor, *, precondition: bool) -> torch.Tensor:
    """The published architecture written out, sample by sample and head by head."""

    def norm(x: torch.Tensor, layer: torch.nn.LayerNorm) -> torch.Tensor:
        centered = x - x.mean(dim=-1, keepdim=True)
        return centered / (centered.square().mean(dim=-1, keepdim=True) + 1e-12).sqrt() * layer.weight + layer.bias

    logits = []
    for sample in ids:
        angles = [[n / 10000 ** (2 * i / 16) for i in range(8)] for n in range(len(sample))]
        waves = [[*map(math.sin, row), *map(math.cos, row)] for row in angles]
        x = model.word_embedding.weight[sample] + model.position_scale * torch.tensor(waves, dtype=torch.float64)
        x = norm(x, model.embedding_norm)
        for layer in model.layers:
            y, heads = norm(x, layer.attention_norm), []
            for head in range(2):
                rows = slice(8 * head, 8 * head + 8)
                attention = layer.attention
                q, k, v = (y @ p.weight[rows].T for p in (attention.q_proj, attention.k_proj, attention.v_proj))
                heads.append(torch.softmax(q @ k.T / math.sqrt(8), dim=-1) @ v)
                if precondition:
                    heads[-1] = heads[-1] / heads[-1].norm(dim=-1, keepdim=True)
            x = x + torch.cat(heads, dim=-1) @ layer.attention.proj.weight.T
            value, gate = (norm(x, layer.feed_forward_norm) @ layer.feed_forward_in.weight.T).split(12, dim=-1)
            x = x + (value * F.gelu(gate)) @ layer.feed_forward_out.weight.T
        logits.append(norm(x, model.norm) @ model.word_embedding.weight.T)
    return torch.stack(logits)


@pytest.mark.parametrize("precondition", [False, True])
def test_the_forward_pass_written_out_by_hand(precondition: bool) -> None:
    model, ids = build(), torch.randint(50, (3, 7))
    if precondition:
        assert len(precondition_(model).converted) == 2
    expected = by_hand(model, ids, precondition=precondition)
    torch.testing.assert_close(model(ids), expected, rtol=1e-10, atol=1e-12)
    positions = torch.tensor([[0, 6], [3, 3], [2, 1]])
    wanted = torch.stack([expected[row, positions[row]] for row in range(3)])
    torch.testing.assert_close(model(ids, positions=positions), wanted, rtol=1e-10, atol=1e-12)


def test_converted_equals_built_preconditioned_and_comes_back() -> None:
    ids = torch.randint(50, (2, 9))
    model = build()
    plain = model(ids)
    precondition_(model)
    torch.testing.assert_close(build(precondition=PreconditionConfig())(ids), model(ids))
    restore_(model)
    assert torch.equal(model(ids), plain)


@pytest.mark.parametrize("precondition", [None, PreconditionConfig()])
def test_padding_changes_nothing(precondition: PreconditionConfig | None) -> None:
    model, ids = build(precondition=precondition), torch.randint(50, (2, 9))
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, 5:] = 0
    padded = model(ids, mask)
    torch.testing.assert_close(padded[1, :5], model(ids[1:, :5])[0])
    torch.testing.assert_close(padded[0], model(ids[:1])[0])


def test_dropout_acts_in_training_alone() -> None:
    torch.manual_seed(0)
    model = CrammedBert(CrammedBertConfig(vocab_size=50, width=16, layers=1, num_heads=2, feed_forward=24, dropout=0.5))
    ids = torch.randint(50, (2, 9))
    assert not torch.equal(model(ids), model(ids))
    assert torch.equal(model.eval()(ids), model(ids))


def test_initial_weights() -> None:
    torch.manual_seed(0)
    model = CrammedBert(CrammedBertConfig(vocab_size=2000, width=64, layers=2, num_heads=4, feed_forward=256))
    for weight in (model.word_embedding.weight, model.layers[1].attention.q_proj.weight):
        assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert float(model.position_scale.detach()) == pytest.approx(1 / 8)
    assert torch.equal(sinusoids(3, 4, torch.zeros(1))[0], torch.tensor([0.0, 0.0, 1.0, 1.0]))


@pytest.mark.parametrize("precondition", [None, PreconditionConfig(gradient="stop", gain=2.0)])
def test_saved_and_loaded_in_the_same_form(tmp_path: Path, precondition: PreconditionConfig | None) -> None:
    model, ids = build(precondition=precondition).float(), torch.randint(50, (2, 9))
    save_crammed_bert(model, tmp_path)
    loaded = load_crammed_bert(tmp_path, dropout=0.3)
    assert loaded.config == dataclasses.replace(SMALL, dropout=0.3)
    assert is_preconditioned(loaded) == (precondition is not None)
    assert torch.equal(loaded.eval()(ids), model(ids))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_configuration_and_weights_disagree(tmp_path: Path) -> None:
    """One is from a preconditioned model and the other from a plain one, which a monitor that looks on leaves plain."""
    for name, precondition in (("plain", None), ("preconditioned", PreconditionConfig())):
        model = build(precondition=precondition)
        with ConditionMonitor(model):
            save_crammed_bert(model, tmp_path / name)
    texts = {name: (tmp_path / name / "config.json").read_text() for name in ("plain", "preconditioned")}
    assert json.loads(texts["plain"])["preconditioned_attention"] is None
    for name, other, message in (
        ("plain", "preconditioned", "says that the model is preconditioned, and the weights beside it have no mark"),
        ("preconditioned", "plain", r"(?s)do not fit .*requires_preconditioned_attention"),
    ):
        (tmp_path / name / "config.json").write_text(texts[other])
        with pytest.raises(ValueError, match=message):
            load_crammed_bert(tmp_path / name)
    model = build()
    precondition_(model, marker=False)
    save_crammed_bert(model, tmp_path / "unmarked")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert is_preconditioned(load_crammed_bert(tmp_path / "unmarked"))


def test_folders_of_something_else(tmp_path: Path) -> None:
    save_crammed_bert(build(), tmp_path)
    config = tmp_path / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"width": 16', '"width": 8'))
    with pytest.raises(
        ValueError, match=r"(?s)the weights in .* do not fit the sizes in .*config\.json: .*size mismatch"
    ):
        load_crammed_bert(tmp_path)
    config.write_text(text.replace('"width"', '"with"'))
    with pytest.raises(ValueError, match=r"unknown size in .*: 'with' \(did you mean 'width'"):
        load_crammed_bert(tmp_path)
    config.write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match="must describe a crammed BERT"):
        load_crammed_bert(tmp_path)
    with pytest.raises(OSError):
        load_crammed_bert(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 10, "num_heads": 4}, "width must be a multiple of num_heads"),
        ({"width": 9, "num_heads": 3}, "width must be even"),
        ({"feed_forward": 7}, "feed_forward must be even"),
        ({"layers": 0}, "layers must be at least 1"),
    ],
)
def test_sizes_that_cannot_be(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CrammedBertConfig(**options)
