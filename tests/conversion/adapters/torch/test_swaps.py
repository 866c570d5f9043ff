import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preconditioned_attention import precondition_, restore_
from tests.helpers.explicit import diagonal_product, relative_error


def by_hand(
    module: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, **options
) -> tuple[Tensor, Tensor | None]:
    """PyTorch's own functional with an identity in place of the output projection; then the rows, then the projection.

    Inputs are (L, B, E); the functional returns the merged heads, so the definition is applied to what PyTorch
    itself computes, whatever the masks.
    """
    weights = [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight]
    merged, attention = F.multi_head_attention_forward(
        query, key, value, module.embed_dim, module.num_heads, module.in_proj_weight, module.in_proj_bias,
        module.bias_k, module.bias_v, module.add_zero_attn, module.dropout,
        torch.eye(module.embed_dim, dtype=query.dtype), None, training=module.training,
        use_separate_proj_weight=module.in_proj_weight is None,
        **dict(zip(("q_proj_weight", "k_proj_weight", "v_proj_weight"), weights, strict=True)), **options,
    )  # fmt: skip
    rows = diagonal_product(merged.unflatten(-1, (module.num_heads, module.head_dim)))
    return module.out_proj(rows.flatten(-2)), attention


def converted(**options) -> nn.MultiheadAttention:
    module = nn.MultiheadAttention(12, 3, dtype=torch.float64, **options)
    for parameter in module.parameters():  # biases start at zero, where a forgotten one would not show
        nn.init.normal_(parameter, std=0.5)
    precondition_(module)
    return module


def masks(length: int, keys: int, batch: int) -> dict[str, dict[str, Tensor]]:
    padding = torch.arange(keys) >= torch.tensor([keys, keys - 2])[:batch, None]
    causal = torch.ones(length, keys, dtype=torch.bool).triu(1)
    additive = torch.randn(batch * 3, length, keys, dtype=torch.float64)
    return {
        "none": {},
        "padding": {"key_padding_mask": padding},
        "causal": {"attn_mask": causal},
        "additive per head": {"attn_mask": additive},
        "causal and padding": {"attn_mask": causal, "key_padding_mask": padding},
        "both additive": {
            "attn_mask": additive[0],
            "key_padding_mask": torch.zeros(padding.shape).double().masked_fill(padding, -1e4),
        },
    }


MODES = {
    "default": {},
    "no bias": {"bias": False},
    "own widths": {"kdim": 7, "vdim": 5},
    "added bias and zeros": {"add_bias_kv": True, "add_zero_attn": True},
}


@pytest.mark.parametrize("mask", masks(1, 1, 1))
@pytest.mark.parametrize("options", MODES.values(), ids=MODES.keys())
def test_against_pytorch_with_one_line_added(options: dict, mask: str) -> None:
    """Every combination of train and eval, grad and no_grad, weights and none, batch_first and not."""
    module = converted(**options)
    query = torch.randn(6, 2, 12, dtype=torch.float64)
    key = torch.randn(8, 2, module.kdim, dtype=torch.float64)
    value = torch.randn(8, 2, module.vdim, dtype=torch.float64)
    given = masks(6, 8, 2)[mask]
    for training, grad, weights, average, batch_first in itertools.product([True, False], repeat=5):
        module.train(training)
        module.batch_first = batch_first
        inputs = [x.transpose(0, 1) if batch_first else x for x in (query, key, value)]
        with torch.set_grad_enabled(grad):
            out, attention = module(*inputs, need_weights=weights, average_attn_weights=average, **given)
        expected, expected_attention = by_hand(
            module, query, key, value, need_weights=weights, average_attn_weights=average, **given
        )
        assert relative_error(out, expected.transpose(0, 1) if batch_first else expected) <= 1e-12
        assert (attention is None) == (not weights)
        if weights:
            assert attention.shape == expected_attention.shape
            assert relative_error(attention, expected_attention) <= 1e-12
        assert out.requires_grad == grad


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
def test_self_attention_and_its_gradients(batch_first: bool, need_weights: bool) -> None:
    module = converted(batch_first=batch_first)
    x = torch.randn(2, 5, 12, dtype=torch.float64) if batch_first else torch.randn(5, 2, 12, dtype=torch.float64)
    causal = nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
    out, _ = module(x, x, x, attn_mask=causal, is_causal=True, need_weights=need_weights)
    t = x.transpose(0, 1) if batch_first else x
    expected, _ = by_hand(module, t, t, t, attn_mask=causal, is_causal=True, need_weights=need_weights)
    assert relative_error(out, expected.transpose(0, 1) if batch_first else expected) <= 1e-12
    parameters = list(module.parameters())
    grads = torch.autograd.grad(out.square().sum(), parameters)
    for actual, wanted in zip(grads, torch.autograd.grad(expected.square().sum(), parameters), strict=True):
        assert relative_error(actual, wanted) <= 1e-12


def test_unbatched() -> None:
    module = converted(batch_first=True)
    x, padding = torch.randn(5, 12, dtype=torch.float64), torch.tensor([False] * 4 + [True])
    out, weights = module(x, x, x, key_padding_mask=padding)
    expected, expected_weights = by_hand(module, x, x, x, key_padding_mask=padding)
    assert relative_error(out, expected) <= 1e-12
    assert relative_error(weights, expected_weights) <= 1e-12
    assert (out.shape, weights.shape) == (expected.shape, expected_weights.shape)


def test_dropout_draws_the_same_numbers_as_pytorch() -> None:
    module = converted(dropout=0.25)
    x = torch.randn(5, 2, 12, dtype=torch.float64)
    torch.manual_seed(3)
    out, weights = module(x, x, x, average_attn_weights=False)
    torch.manual_seed(3)
    expected, expected_weights = by_hand(module, x, x, x, average_attn_weights=False)
    assert relative_error(out, expected) <= 1e-12
    assert relative_error(weights, expected_weights) <= 1e-12
    assert (weights == 0).any()


@pytest.mark.parametrize("need_weights", [True, False])
def test_a_query_with_nothing_to_attend_to(need_weights: bool) -> None:
    module = converted()
    x = torch.randn(5, 2, 12, dtype=torch.float64)
    mask = torch.zeros(5, 5, dtype=torch.bool)
    mask[3] = True
    out, _ = module(x, x, x, attn_mask=mask, need_weights=need_weights)
    assert torch.equal(out[3], module.out_proj.bias.expand(2, 12))
    out.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


def encoder(**options) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(12, 4, 16, dropout=0.0, batch_first=True, dtype=torch.float64, **options)
    return nn.TransformerEncoder(layer, 2, **({"enable_nested_tensor": False} if options else {}))


@pytest.mark.parametrize("options", [{}, {"norm_first": True}], ids=["post-norm", "pre-norm"])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_encoder_with_its_fast_path_and_nested_tensors(options: dict, padded: bool) -> None:
    """Evaluation without gradients is where PyTorch would go around the module; training is where it never does."""
    model, x = encoder(**options), torch.randn(3, 7, 12, dtype=torch.float64)
    padding = torch.arange(7) >= torch.tensor([7, 5, 3])[:, None] if padded else None
    valid = slice(None) if padding is None else ~padding
    with torch.no_grad():
        plain = model.eval()(x, src_key_padding_mask=padding)
    precondition_(model)
    expected = model.train()(x, src_key_padding_mask=padding)
    model.eval()
    for grad, inference in itertools.product([True, False], repeat=2):
        with torch.inference_mode(inference), torch.set_grad_enabled(grad and not inference):
            out = model(x, src_key_padding_mask=padding)
        assert relative_error(out[valid], expected[valid]) <= 1e-12
        assert relative_error(out[valid], plain[valid]) > 1e-3
    restore_(model)
    with torch.no_grad():
        assert torch.equal(model(x, src_key_padding_mask=padding), plain)


def test_encoder_layer_against_a_layer_by_hand() -> None:
    layer = nn.TransformerEncoderLayer(12, 4, 16, dropout=0.0, dtype=torch.float64)
    precondition_(layer)
    x = torch.randn(7, 3, 12, dtype=torch.float64)
    attended, _ = by_hand(layer.self_attn, x, x, x, need_weights=False)
    hidden = layer.norm1(x + attended)
    expected = layer.norm2(hidden + layer.linear2(layer.linear1(hidden).relu()))
    with torch.no_grad():
        assert relative_error(layer.eval()(x), expected) <= 1e-12


def test_decoder_layer_converts_both_attentions() -> None:
    layer = nn.TransformerDecoderLayer(12, 4, 16, dropout=0.0, dtype=torch.float64)
    report = precondition_(layer)
    assert [entry.path for entry in report.converted] == ["self_attn", "multihead_attn"]
    assert layer(torch.randn(3, 1, 12).double(), torch.randn(5, 1, 12).double()).shape == (3, 1, 12)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_input() -> None:
    module = converted(batch_first=True).eval()
    sequences = [torch.randn(n, 12, dtype=torch.float64) for n in (4, 2)]
    nested = torch.nested.nested_tensor(sequences)
    with torch.no_grad():
        out, _ = module(nested, nested, nested, need_weights=False)
        for sequence, result in zip(sequences, out.unbind(), strict=True):
            assert relative_error(result, module(sequence, sequence, sequence)[0]) <= 1e-12


def test_state_dict_copy_and_a_plain_one_beside_it() -> None:
    plain = nn.MultiheadAttention(12, 3, dtype=torch.float64)
    module = copy.deepcopy(plain)
    precondition_(module)
    x = torch.randn(5, 2, 12, dtype=torch.float64)
    assert not torch.equal(module(x, x, x)[0], plain(x, x, x)[0])
    twin = copy.deepcopy(module)
    assert torch.equal(twin(x, x, x)[0], module(x, x, x)[0])
    restore_(module)
    assert type(module) is nn.MultiheadAttention
    assert torch.equal(module(x, x, x)[0], plain(x, x, x)[0])
    assert list(module.state_dict()) == list(plain.state_dict())


def test_compiles_in_one_graph() -> None:
    module = converted(batch_first=True)
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert relative_error(compiled(x, x, x)[0], module(x, x, x)[0]) <= 1e-12


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (
            {"attn_mask": torch.zeros(3, 3, dtype=torch.bool)},
            ValueError,
            r"attn_mask must have shape \(L, S\) = \(5, 5\)",
        ),
        (
            {"key_padding_mask": torch.zeros(5, 2, dtype=torch.bool)},
            ValueError,
            r"key_padding_mask must have shape \(B, S\) = \(2, 5\)",
        ),
        (
            {"attn_mask": torch.zeros(5, 5, dtype=torch.int64)},
            TypeError,
            "attn_mask must be boolean .* got torch.int64",
        ),
        ({"is_causal": True}, ValueError, "is_causal=True says that attn_mask is the causal mask"),
    ],
)
def test_bad_masks_are_named(options: dict, error: type[Exception], words: str) -> None:
    x = torch.randn(5, 2, 12, dtype=torch.float64)
    with pytest.raises(error, match=words):
        converted()(x, x, x, **options)


def test_a_subclass_with_its_own_forward_is_listed_not_converted() -> None:
    class Own(nn.MultiheadAttention):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    with pytest.raises(ValueError, match=r"nothing to convert[\s\S]*Own"):
        precondition_(Own(12, 3))
