import pytest
import torch
from torch import Tensor, nn

from preconditioned_attention import PreconditionConfig, precondition_, restore_
from tests.helpers.explicit import diagonal_product, relative_error
from tests.helpers.oracle import compare, jitter_, normalizing_inside

pytest.importorskip("x_transformers")

from x_transformers import Decoder, Encoder, TransformerWrapper, ViTransformerWrapper, XTransformer
from x_transformers.x_transformers import Attention

OPTIONS = {
    "plain": {},
    "flash": {"flash": True},
    "causal flash": {"flash": True, "causal": True},
    "shared key heads": {"kv_heads": 2},
    "one key head": {"one_kv_head": True},
    "wide values": {"value_dim_head": 6},
    "talking heads": {"pre_talking_heads": True, "post_talking_heads": True},
    "scaled talking heads": {"pre_scale_post_talking_heads": True},
    "head scale": {"head_scale": True},
    "gated values": {"gate_values": True},
    "gated heads": {"gate_value_heads": True},
    "output gate": {"output_gate": True},
    "attention on attention": {"on_attn": True},
    "memory": {"num_mem_kv": 3},
    "zero key": {"add_zero_kv": True},
    "learned sink": {"head_learned_sink": True},
    "cosine": {"qk_norm": True},
    "rms norms": {"qk_rmsnorm": True, "value_rmsnorm": True},
    "soft clamp": {"softclamp_logits": True},
    "l2": {"l2_distance": True},
    "selective": {"selective": True, "causal": True},
    "signed": {"cog_signed": True},
    "orthogonal": {"orthog_projected_values": True},
    "orthogonal per head": {"orthog_projected_values_per_head": True},
    "latent keys": {"use_latent_kv": True, "dim_latent_kv": 5},
    "inverted": {"inverted_attention": True},
    "window": {"max_attend_past": 2, "causal": True},
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_against_attention_that_normalizes_inside(options: dict, training: bool) -> None:
    module = jitter_(Attention(12, 4, heads=4, **options)).double().train(training)
    proof = compare(module, torch.randn(2, 6, 12, dtype=torch.float64), config=PreconditionConfig())
    assert len(proof.report.entries) == 1
    assert proof.error <= 1e-10
    assert proof.effect > 1e-3
    assert proof.widths == {options.get("value_dim_head", 4)}


def by_hand(module: nn.Module, x: Tensor, **masks: Tensor) -> Tensor:
    """The module's output with what `Attend` returns scaled where it is returned."""
    attend = module.attend.forward

    def scaled(*args, **kwargs):
        rows, intermediates = attend(*args, **kwargs)
        return diagonal_product(rows), intermediates

    module.attend.forward = scaled
    out = module(x, **masks)
    del module.attend.forward
    return out


@pytest.mark.parametrize(
    "options", [{"sigmoid": True}, {"hard": True}, {"sparse_topk": 3}], ids=["sigmoid", "hard", "top k"]
)
def test_weights_that_are_no_softmax(options: dict) -> None:
    module = jitter_(Attention(12, 4, heads=4, **options)).double()
    x = torch.randn(2, 6, 12, dtype=torch.float64)
    expected = by_hand(module, x)
    precondition_(module)
    assert relative_error(module(x), expected) <= 1e-12


@pytest.mark.parametrize("flash", [True, False])
def test_masks_and_a_query_with_nothing_to_attend_to(flash: bool) -> None:
    module = jitter_(Attention(12, 4, heads=4, flash=flash)).double()
    x, padding = torch.randn(2, 6, 12, dtype=torch.float64), torch.arange(6) < torch.tensor([[6], [4]])
    masks = {"mask": padding, "attn_mask": torch.arange(6).expand(6, 6).T != 2}
    expected = by_hand(module, x, **masks)
    precondition_(module)
    out = module(x, **masks)
    assert relative_error(out, expected) <= 1e-12
    assert torch.equal(out[:, 2], torch.zeros(2, 12, dtype=torch.float64))


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"laser": True}, "logarithm"), ({"hybrid_module": nn.Linear(12, 16)}, "normalized already")],
)
def test_refused(options: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        precondition_(Attention(12, 4, heads=4, **options))


MODELS = {
    "language model": (
        lambda: TransformerWrapper(
            num_tokens=20, max_seq_len=8,
            attn_layers=Decoder(dim=12, depth=2, heads=3, rotary_pos_emb=True, attn_flash=True),
        ),
        lambda: (torch.randint(0, 20, (2, 8)),),
        2,
    ),
    "vision": (
        lambda: ViTransformerWrapper(
            image_size=8, patch_size=4, num_classes=3,
            attn_layers=Encoder(dim=12, depth=2, heads=3, attn_gate_values=True),
        ),
        lambda: (torch.randn(2, 3, 8, 8, dtype=torch.float64),),
        2,
    ),
    "encoder and decoder": (
        lambda: XTransformer(
            dim=12, enc_num_tokens=20, enc_depth=1, enc_heads=2, enc_max_seq_len=8, dec_num_tokens=20, dec_depth=1,
            dec_heads=2, dec_max_seq_len=8,
        ),
        lambda: (torch.randint(0, 20, (2, 8)), torch.randint(0, 20, (2, 8))),
        3,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("build", "inputs", "count"), MODELS.values(), ids=MODELS.keys())
def test_whole_models(build, inputs, count: int) -> None:
    model = jitter_(build(), 0.1).double().eval()
    given = inputs()
    plain = model(*given)
    with normalizing_inside(model, Attention) as widths:
        expected = model(*given)
    assert len(widths) == count
    report = precondition_(model, strict=True)
    assert len(report.converted) == count
    report.verify(*given)
    assert relative_error(model(*given), expected) <= 1e-10
    assert relative_error(plain, expected) > 1e-4
    restore_(model)
    assert torch.equal(model(*given), plain)


def test_gain_has_one_value_per_head() -> None:
    module = Attention(12, 4, heads=4, kv_heads=2)
    precondition_(module, PreconditionConfig(gain=1.5))
    assert module.preconditioner.gain.shape == (4,)


def test_generating_with_a_cache_equals_generating_without() -> None:
    layers = Decoder(dim=12, depth=2, heads=3, rotary_pos_emb=True)
    model = jitter_(TransformerWrapper(num_tokens=20, max_seq_len=12, attn_layers=layers)).double().eval()
    precondition_(model)
    tokens = torch.randint(0, 20, (2, 6))
    whole = model(tokens)
    _, cache = model(tokens[:, :4], return_intermediates=True)
    step, cache = model(tokens[:, :5], cache=cache, return_intermediates=True)
    last = model(tokens, cache=cache)
    assert relative_error(step[:, -1], whole[:, 4]) <= 1e-10
    assert relative_error(last[:, -1], whole[:, 5]) <= 1e-10
