import copy
import math
from collections import Counter

import pytest
import timm
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from preconditioned_attention import ConditionMonitor, layers, precondition_
from preconditioned_attention.diagnostics import Observation, condition_number, read_records, row_norm_spread
from tests.helpers.explicit import attention_rows, diagonal_product

SIZES = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 3, "num_classes": 5}


def vit(**options: object) -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", **SIZES, **options).double().eval()


IMAGES = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
NUMBERS = ("kappa_before", "kappa_after", "spread_before", "spread_after")


def first_layer(model: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    tokens = model.blocks[0].norm1(model._pos_embed(model.patch_embed(IMAGES)))
    return model.blocks[0].attn.qkv(tokens).view(2, 17, 3, 3, 8).permute(2, 0, 3, 1, 4).unbind(0)


def remains(model: nn.Module) -> tuple[object, ...]:
    """Everything that a monitor might leave behind."""
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")
    return (
        list(model.state_dict()),
        [name for name, _ in model.named_modules()],
        [name for name, _ in model.named_buffers()],
        [type(module) for module in model.modules()],
        [sorted(vars(module)) for module in model.modules()],
        [list(getattr(module, name)) for module in model.modules() for name in hooks],
        [list(getattr(module, "observers", [])) for module in model.modules()],
        [module.training for module in model.modules()],
    )


def losses(model: nn.Module, steps: int = 4) -> list[Tensor]:
    """Train with dropout from a fixed seed."""
    torch.manual_seed(5)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-2)
    values = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(IMAGES), torch.tensor([1, 3]))
        loss.backward()
        optimizer.step()
        values.append(loss.detach())
    return values


@pytest.mark.parametrize("converted", [False, True])
def test_what_it_records_is_a_and_c_a(converted: bool) -> None:
    model = vit()
    q, k, v = first_layer(model)
    rows = attention_rows(q, k, v)
    if converted:
        precondition_(model)
    observations: list[Observation] = []
    with ConditionMonitor(model, on_observation=observations.append) as monitor:
        model(IMAGES)
    first, second = monitor.summary()
    assert (first["layer"], second["layer"], first["matrices"]) == ("blocks.0.attn", "blocks.1.attn", 6)
    seen = observations[0]
    torch.testing.assert_close(seen.before, rows, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(seen.after, diagonal_product(rows), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(seen.weights, (q @ k.mT / math.sqrt(8)).softmax(dim=-1), rtol=1e-12, atol=1e-13)
    record = monitor.records[4]  # the second sample's second head
    assert (record.layer, record.sample, record.head, record.rows, record.head_dim) == ("blocks.0.attn", 1, 1, 17, 8)
    assert record.kappa_before == pytest.approx(condition_number(rows).value[1, 1].item(), rel=1e-9)
    assert record.spread_before == pytest.approx(row_norm_spread(rows).value[1, 1].item(), rel=1e-9)
    assert record.spread_after == pytest.approx(0.0, abs=1e-14)
    weights = seen.weights[1, 1]
    assert record.entropy == pytest.approx(-(weights * weights.log()).sum(dim=-1).mean().item(), rel=1e-12)
    medians = condition_number(rows).value.flatten().sort().values[2:4].mean().item()
    assert first["kappa_before"] == pytest.approx(medians, rel=1e-9)


@pytest.mark.parametrize("converted", [False, True])
def test_leaves_nothing_behind(converted: bool) -> None:
    model = vit()
    if converted:
        precondition_(model)
    before, parts = model(IMAGES), remains(model)
    with ConditionMonitor(model) as monitor:
        assert torch.equal(model(IMAGES), before)
        assert list(model.state_dict()) == parts[0]
    assert remains(model) == parts
    assert torch.equal(model(IMAGES), before)
    attached = ConditionMonitor(model, every=1, jacobian=True).attach()
    model.train()(IMAGES)
    attached.close()
    attached.close()
    assert remains(model.eval()) == parts
    assert len(monitor.summary()) == 2


@pytest.mark.parametrize("backward", ["plain", "checkpointing"])
@pytest.mark.parametrize("converted", [False, True])
def test_training_is_the_same_bit_for_bit(converted: bool, backward: str) -> None:
    model = vit(attn_drop_rate=0.1, proj_drop_rate=0.1)
    model.set_grad_checkpointing(backward == "checkpointing")
    if converted:
        precondition_(model)
    other = copy.deepcopy(model)
    monitor = ConditionMonitor(other, every=2).attach()
    watched = losses(other)
    monitor.close()
    assert watched == losses(model)
    assert {record.step for record in monitor.records} == {1, 3}
    assert len(monitor.records) == 2 * 2 * 3


def test_attached_it_counts_passes_in_training_mode() -> None:
    model = vit()
    monitor = ConditionMonitor(model, every=2, heads=2, tokens=9).attach()
    for mode in (True, False, True, True):
        model.train(mode)(IMAGES)
    monitor.close()
    assert [record.step for record in monitor.records] == [1] * 4 + [3] * 4
    assert {(record.sample, record.rows) for record in monitor.records if record.layer == "blocks.0.attn"} == {
        (monitor.records[0].sample, 9)
    }
    by_step = [[(r.layer, r.head) for r in monitor.records if r.step == step] for step in (1, 3)]
    assert by_step[0] == by_step[1], "a curve follows the same heads"
    other = ConditionMonitor(model, every=2, heads=2, tokens=9).attach()
    model.train()(IMAGES)
    other.close()
    assert [r[2:] for r in other.records] == [r[2:] for r in monitor.records[:4]], "the same seed draws the same"


def test_whoever_counts_steps_gets_one_pass_of_each() -> None:
    model = vit().train()
    monitor = ConditionMonitor(model, every=10).attach()
    due = []
    for step in range(9, 23):
        monitor.step = step
        due.append(monitor.is_due())
        model(IMAGES)
        model(IMAGES)
    monitor.close()
    assert [step for step, yes in zip(range(9, 23), due, strict=True) if yes] == [11, 21]
    assert [record.step for record in monitor.take()] == [11] * 6 + [21] * 6
    assert monitor.take() == []


class Calls(TorchDispatchMode):
    """Counts the operators that are called in it."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func] += 1
        return func(*args, **(kwargs or {}))


def test_passes_that_are_not_recorded_stay_fused() -> None:
    model = vit().train()
    precondition_(model)
    monitor = ConditionMonitor(model, every=2).attach()
    counts = []
    for _ in range(3):
        with Calls() as calls:
            model(IMAGES)
        counts.append(calls.counts[torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default])
    monitor.close()
    assert counts == [4, 2, 4], "A of the two layers is formed on its own in recorded passes alone"


def test_partly_converted_model_is_seen_whole() -> None:
    model = vit()
    precondition_(model, filter_fn=lambda module, path: path == "blocks.1.attn")
    with ConditionMonitor(model) as monitor:
        model(IMAGES)
    assert [row["layer"] for row in monitor.summary()] == ["blocks.0.attn", "blocks.1.attn"]


def test_parts_of_the_model_may_be_called_on_their_own() -> None:
    model = vit()
    with ConditionMonitor(model) as monitor:
        model.forward_features(IMAGES)
    assert len(monitor.summary()) == 2


@pytest.mark.parametrize("attached", [False, True])
def test_leaves_the_model_as_it_was_after_an_error(attached: bool) -> None:
    model = vit().train()
    parts = remains(model)
    with pytest.raises(RuntimeError), ConditionMonitor(model):
        model(IMAGES[:, :1])
    assert remains(model) == parts
    monitor = ConditionMonitor(model).attach()
    with pytest.raises(RuntimeError):
        model(IMAGES[:, :1])
    assert not any(hasattr(module, "preconditioner") for module in model.modules())
    monitor.close()
    assert remains(model) == parts


def encoder() -> tuple[nn.Module, tuple[Tensor, ...]]:
    layer = nn.TransformerEncoderLayer(16, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval(), (torch.randn(3, 5, 16),)


def bert(**options: object) -> tuple[nn.Module, tuple[Tensor, ...]]:
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
    config = transformers.BertConfig(**sizes, vocab_size=40, **options)
    return transformers.BertModel(config).eval(), (torch.arange(9)[None],)


def llama() -> tuple[nn.Module, tuple[Tensor, ...]]:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(**sizes, intermediate_size=32, vocab_size=40)
    return transformers.LlamaModel(config).eval(), (torch.arange(9)[None],)


def swin() -> tuple[nn.Module, tuple[Tensor, ...]]:
    sizes = {"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (2,), "num_heads": (2,), "patch_size": 4}
    return timm.create_model("swin_tiny_patch4_window7_224", **sizes).eval(), (torch.randn(2, 3, 32, 32),)


def own() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return layers.MultiheadAttention(16, 4, num_kv_heads=2, precondition=None).eval(), (torch.randn(2, 7, 16),)


def channel() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return layers.CrossCovarianceAttention(16, 4, precondition=None).eval(), (torch.randn(2, 7, 16),)


# model, whether queries and keys are handed over
FAMILIES = {
    "torch": (encoder, True),
    "bert": (bert, True),
    "bert-eager": (lambda: bert(attn_implementation="eager"), False),
    "llama": (llama, True),
    "timm-swin": (swin, False),
    "own": (own, True),
    "own-channel": (channel, False),
}


@pytest.mark.parametrize("converted", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_on_the_other_adapters(family: str, converted: bool) -> None:
    build, has_scores = FAMILIES[family]
    model, given = build()
    if converted:
        precondition_(model)
    with torch.no_grad():
        before = model(*given)
        with ConditionMonitor(model) as monitor:
            inside = model(*given)
    before, inside = (out if isinstance(out, Tensor) else out[0] for out in (before, inside))
    torch.testing.assert_close(inside, before, rtol=1e-5, atol=1e-5)
    assert all(row["spread_after"] == pytest.approx(0, abs=1e-6) for row in monitor.summary())
    for record in monitor.records:
        assert record.singular_before or record.kappa_before >= 1
        assert (record.not_available == "") == has_scores
        assert math.isnan(record.entropy) == (not has_scores)
        assert math.isnan(record.entropy) or 0 < record.entropy <= math.log(record.rows)


def test_entropy_knows_masks_and_shared_keys() -> None:
    model, (tokens,) = llama()
    observations: list[Observation] = []
    with torch.no_grad(), ConditionMonitor(model, on_observation=observations.append):
        model(tokens)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        eager = model(tokens, output_attentions=True).attentions
    for seen, weights in zip(observations, eager, strict=True):
        torch.testing.assert_close(seen.weights, weights.double(), rtol=1e-4, atol=1e-6)


def test_rows_that_are_not_finite_are_said_to_be_so() -> None:
    model = vit()
    with torch.no_grad():
        model.blocks[1].attn.qkv.bias.fill_(math.nan)
    with ConditionMonitor(model) as monitor:
        model(IMAGES)
    first, second = monitor.summary()
    assert all(math.isfinite(first[name]) for name in NUMBERS)
    assert all(math.isnan(second[name]) for name in NUMBERS)


def test_singular_matrices_are_counted() -> None:
    model = vit()
    with torch.no_grad():
        model.blocks[0].attn.qkv.weight[48:51] = model.blocks[0].attn.qkv.weight[48]  # equal columns of the values
        model.blocks[0].attn.qkv.bias.zero_()
    with ConditionMonitor(model) as monitor:
        model(IMAGES)
    first, second = monitor.summary()
    assert (first["singular_before"], second["singular_before"], first["matrices"]) == (2, 0, 6)
    record = monitor.records[0]
    assert (record.head, record.singular_before, math.isnan(record.kappa_before)) == (0, True, True)
    assert record.at_least_before > 1e12


def test_writes_what_it_records(tmp_path) -> None:
    model = vit()
    path = tmp_path / "conditioning.csv"
    with ConditionMonitor(model, every=2, path=path) as monitor:
        model(IMAGES)
        assert read_records(path) == monitor.records, "a kill now loses nothing"
        model(IMAGES)
        model(IMAGES)
    assert read_records(path) == monitor.records
    assert {record.step for record in monitor.records} == {1, 3}
    with pytest.raises(FileExistsError, match="nothing is overwritten"), ConditionMonitor(model, path=path):
        pass
    assert read_records(path) == monitor.records


def test_a_model_that_was_not_run_or_has_no_attention() -> None:
    with ConditionMonitor(vit()) as monitor:
        pass
    with pytest.raises(ValueError, match="run the model inside the monitor"):
        monitor.summary()
    with pytest.raises(ValueError, match="no attention that can be observed"):
        ConditionMonitor(nn.Linear(2, 2)).attach()
    attached = ConditionMonitor(vit()).attach()
    with pytest.raises(ValueError, match="attached already"):
        attached.attach()
    with pytest.warns(UserWarning, match="saw no forward pass in training mode"):
        attached.close()


@pytest.mark.filterwarnings("ignore:the monitor was attached and saw no forward pass")
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("converted", [False, True])
def test_compiled_models_are_refused_whichever_comes_first(converted: bool, order: str) -> None:
    torch.compiler.reset()
    model = vit().train()
    if converted:
        precondition_(model)
    compiled = torch.compile(model, backend="eager")
    with pytest.raises(ValueError, match="is compiled"):
        ConditionMonitor(compiled).attach()
    if order == "after":
        compiled(IMAGES)
    for begin in ("attach", "__enter__"):
        monitor = getattr(ConditionMonitor(model), begin)()
        with pytest.raises(ValueError, match="attached to a model that is being compiled"):
            compiled(IMAGES)
        monitor.close()
        compiled(IMAGES)
        assert monitor.records == []


def test_a_model_compiled_in_place_is_refused_whichever_comes_first() -> None:
    torch.compiler.reset()
    model = vit().train()
    precondition_(model)
    monitor = ConditionMonitor(model).attach()
    model.compile(backend="eager")
    with pytest.raises(ValueError, match="attached to a model that is being compiled"):
        model(IMAGES)
    with pytest.warns(UserWarning, match="saw no forward pass"):
        monitor.close()
    model(IMAGES)
    with pytest.raises(ValueError, match="is compiled"):
        ConditionMonitor(model).attach()
