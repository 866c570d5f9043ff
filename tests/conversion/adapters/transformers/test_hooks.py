import importlib
from collections.abc import Callable

import pytest
import torch
import transformers
from torch import Tensor, nn

from preconditioned_attention import PreconditionConfig, precondition_, restore_
from preconditioned_attention.conversion.registry import find_adapter
from tests.helpers.explicit import attention_rows, diagonal_product, relative_error
from tests.helpers.oracle import compare, jitter_, normalizing_inside
from tests.helpers.transformers_cases import (
    EXPERTS,
    SEQ2SEQ,
    TEXT,
    Case,
    first_attention,
    outputs,
    pairs,
    tokens,
)
from tests.helpers.transformers_hook_cases import boxes
from tests.helpers.transformers_modules import attention_class, config, heads, normalized, rows

KEY, QUERY = rows(2, 9), rows(2, 5)
PADDING = torch.zeros(2, 1, 1, 9, dtype=torch.float64)
PADDING[1, ..., 6:] = -1e4


def made(name: str, *args: object, **options: object) -> nn.Module:
    """The attention module in float64, its weights moved."""
    torch.manual_seed(0)
    return jitter_(attention_class(name)(*args, **options)).double()


def proved(module: nn.Module, *args: object, reference: Callable[..., Tensor] | None = None, **options: object) -> None:
    """Hold it against the reference, in both modes."""
    for train in (False, True):
        proof = compare(module.train(train), *args, config=PreconditionConfig(**options), reference=reference)
        assert proof.error <= 1e-12
        assert proof.effect > 1e-3


class Both(nn.Module):
    """The first two outputs of an attention, one after the other in one tensor."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, *args: object) -> Tensor:
        first, second, *_ = self.attention(*args)
        return torch.cat([first.flatten(), second.flatten()])


def test_luke_without_entities() -> None:
    module = made("luke.LukeSelfAttention", config(use_entity_aware_attention=True))
    proved(module, KEY, None, PADDING)
    assert module(KEY, None)[1] is None


@pytest.mark.parametrize("aware", [False, True])
def test_luke_with_entities(aware: bool) -> None:
    both = Both(made("luke.LukeSelfAttention", config(use_entity_aware_attention=aware)))
    padding = torch.cat([PADDING, torch.zeros(2, 1, 1, 5, dtype=torch.float64)], dim=-1)

    def reference(inside: Both, *args: Tensor) -> Tensor:
        with normalizing_inside(inside, type(inside.attention)):
            return inside(*args)

    proved(both, KEY, QUERY, padding, reference=reference)


def test_lilt_by_hand() -> None:
    """Both streams mix with the same scores, the sum of theirs; the layout's heads are half as wide."""
    both = Both(made("lilt.LiltSelfAttention", config(channel_shrink_ratio=2)))
    layout = KEY[..., :16].contiguous()

    def reference(inside: Both, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        a = inside.attention
        q, k, v = (heads(layer(x)) for layer in (a.query, a.key, a.value))
        q2, k2, v2 = (heads(layer(y), 4) for layer in (a.layout_query, a.layout_key, a.layout_value))
        weights = (q @ k.mT / 8**0.5 + q2 @ k2.mT / 2 + mask).softmax(dim=-1)
        streams = (diagonal_product(weights @ values).transpose(1, 2).flatten() for values in (v, v2))
        return torch.cat(list(streams))

    proved(both, KEY, layout, PADDING, reference=reference)


def test_lilt_refuses_a_layout_of_one_channel() -> None:
    module = made("lilt.LiltSelfAttention", config(channel_shrink_ratio=8))
    with pytest.raises(ValueError, match="rows of one entry in the layout's stream"):
        precondition_(module)


def test_convbert_by_hand() -> None:
    """Attention's heads come first; those of the convolution are as they were."""
    settings = {"embedding_size": 32, "head_ratio": 2, "conv_kernel_size": 3, "num_attention_heads": 4}
    module = made("convbert.ConvBertSelfAttention", transformers.ConvBertConfig(**{**TEXT, **settings})).eval()

    def reference(inside: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
        a = attention_rows(heads(inside.query(x)), heads(inside.key(x)), heads(inside.value(x)), mask)
        attended = diagonal_product(a).transpose(1, 2).flatten(2)
        return torch.cat([attended, inside(x, mask)[0][..., attended.shape[-1] :]], dim=-1)

    proof = compare(module, KEY, PADDING, config=PreconditionConfig(), reference=reference)
    assert (proof.report.entries[0].num_heads, proof.report.entries[0].head_dim) == (2, 8)
    assert proof.error <= 1e-12
    assert proof.effect > 1e-3


def normalize_merged(attention: nn.Module) -> None:
    """Let Reformer's attention scale its heads' outputs (B, H, N, d) before it merges them."""
    merge = attention._merge_hidden_size_dims
    attention._merge_hidden_size_dims = lambda x, *sizes: merge(diagonal_product(x), *sizes)


@pytest.mark.parametrize("kind", ["LSHSelfAttention", "LocalSelfAttention"])
@pytest.mark.parametrize("chunk", [4, 16])
def test_reformer(kind: str, chunk: int) -> None:
    """Sixteen tokens, in chunks and in one; the reference normalizes what is about to be merged."""
    settings = transformers.ReformerConfig(
        attention_head_size=8, hidden_size=32, num_attention_heads=4, num_hashes=2, num_buckets=2, hash_seed=0
    )
    settings.lsh_attn_chunk_length = settings.local_attn_chunk_length = chunk
    settings.lsh_attention_probs_dropout_prob = settings.local_attention_probs_dropout_prob = 0.0
    module, mask = made(f"reformer.{kind}", settings), torch.ones(2, 16)
    mask[1, 11:] = 0

    def reference(inside: nn.Module, *args: Tensor) -> Tensor:
        normalize_merged(inside)
        return inside(*args)[0]

    proved(module, rows(2, 16), mask.bool(), reference=reference)
    precondition_(module)
    assert module(rows(2, 16), mask.bool()).hidden_states.shape == (2, 16, 32), "still a named tuple"


def test_reformer_local_by_hand() -> None:
    settings = transformers.ReformerConfig(attention_head_size=8, hidden_size=32, num_attention_heads=4)
    settings.local_attn_chunk_length, settings.local_attention_probs_dropout_prob = 16, 0.0
    module, mask = made("reformer.LocalSelfAttention", settings), torch.ones(2, 16, dtype=torch.bool)
    mask[1, 11:] = False

    def reference(inside: nn.Module, x: Tensor, keep: Tensor) -> Tensor:
        q, k, v = (heads(layer(x)) for layer in (inside.query, inside.key, inside.value))
        return diagonal_product(attention_rows(q, k, v, keep[:, None, None])).transpose(1, 2).flatten(2)

    proved(module, rows(2, 16), mask, reference=reference)


REFORMER = {
    "attention_head_size": 8,
    "attn_layers": ["local", "lsh"],
    "hidden_size": 32,
    "num_attention_heads": 4,
    "feed_forward_size": 32,
    "vocab_size": 40,
    "axial_pos_shape": [4, 4],
    "axial_pos_embds_dim": [16, 16],
    "local_attn_chunk_length": 4,
    "lsh_attn_chunk_length": 4,
    "num_buckets": 2,
    "num_hashes": 2,
    "hash_seed": 0,
    "max_position_embeddings": 16,
    "is_decoder": False,
}


def test_reformer_learns_through_its_reversible_layers() -> None:
    """Its backward pass runs every layer a second time, and the rows are scaled then too."""
    case = Case("reformer", REFORMER, dtype=torch.float32)
    model, inside = case.build().train(), case.build().train()
    given = {"input_ids": torch.randint(3, 40, (1, 16), generator=torch.Generator().manual_seed(1))}
    report = precondition_(model, strict=True)
    assert [entry.class_name.rpartition(".")[2] for entry in report.converted] == [
        "LocalSelfAttention",
        "LSHSelfAttention",
    ]
    report.verify(**given)
    for layer in inside.encoder.layers:
        normalize_merged(layer.attention.self_attention)
    gradients = []
    for either in (model, inside):
        outputs(either, given).square().sum().backward()
        gradients.append(either.encoder.layers[0].attention.self_attention.value.weight.grad)
    assert relative_error(gradients[0], gradients[1]) <= 1e-5


BLOCKS = {
    **TEXT,
    "block_size": 4,
    "num_random_blocks": 1,
    "max_position_embeddings": 128,
    "attention_type": "block_sparse",
}


def long_tokens() -> dict[str, Tensor]:
    """Sequences long enough for block-sparse attention, the second padded, and not a multiple of the blocks."""
    ids = torch.randint(3, 40, (2, 38), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 38, dtype=torch.int64)
    mask[1, 30:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def normalize_blocks(model: nn.Module) -> None:
    """Let every block-sparse attention of BigBird scale its heads' outputs (B, N, H, d) before it merges them."""
    for module in model.modules():
        if hasattr(module, "bigbird_block_sparse_attention"):
            attend = module.bigbird_block_sparse_attention

            def inside(*args: object, _attend: Callable[..., tuple[Tensor, Tensor]] = attend, **options: object):
                rows_BNHd, weights = _attend(*args, **options)
                return diagonal_product(rows_BNHd), weights

            module.bigbird_block_sparse_attention = inside


BIRDS = {
    "big_bird": Case("big_bird", BLOCKS, long_tokens),
    "bigbird_pegasus": Case(
        "bigbird_pegasus",
        {**SEQ2SEQ, "block_size": 4, "num_random_blocks": 1, "max_position_embeddings": 128},
        lambda: {**long_tokens(), "decoder_input_ids": pairs()["decoder_input_ids"]},
    ),
}


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", BIRDS)
def test_block_sparse_bird(name: str, train: bool) -> None:
    case = BIRDS[name]
    model, inside, given = case.build().train(train), case.build().train(train), case.inputs()
    plain = outputs(model, given)
    normalize_blocks(inside)
    dispatching = {type(m) for m in inside.modules() if "Decoder" in type(m).__name__ and find_adapter(m)}
    with normalizing_inside(inside, *dispatching):
        expected = outputs(inside, given)
    report = precondition_(model, strict=True)
    assert {entry.head_dim for entry in report.entries} == {8}
    assert relative_error(outputs(model, given), expected) <= 1e-10
    assert relative_error(plain, expected) > 1e-3
    restore_(model)
    assert torch.equal(outputs(model, given), plain)


@pytest.mark.parametrize("name", BIRDS)
def test_birds_stay_converted_when_the_model_replaces_their_attention(name: str) -> None:
    """A sequence too short for blocks makes the model put full attention in, for good."""
    case = BIRDS[name]
    full = Case(case.model_type, {**case.config, "attention_type": "original_full"})
    model, given = case.build(), {**case.inputs(), **tokens()}
    reference = full.build()
    reference.load_state_dict(model.state_dict())
    for either in (model, reference):
        precondition_(either, strict=True)
    assert relative_error(outputs(model, given), outputs(reference, given)) <= 1e-12
    assert not any(hasattr(module, "bigbird_block_sparse_attention") for module in model.modules())
    restore_(model)
    restore_(reference)
    assert relative_error(outputs(model, given), outputs(reference, given)) <= 1e-12


def test_a_bird_s_full_attention_alone() -> None:
    """The full attention returns its heads; the block-sparse one is converted as a part of its owner."""
    proved(made("big_bird.BigBirdSelfAttention", config(is_decoder=False, use_bias=True)), KEY)
    sparse = made("big_bird.BigBirdBlockSparseAttention", config(num_random_blocks=1, block_size=4, use_bias=True))
    with pytest.raises(ValueError, match="an attention that is converted as a whole"):
        precondition_(sparse)


IMAGES = ["apertus1p5.Apertus1p5VisionTokenizerAttnBlock", "chameleon.ChameleonVQVAEEncoderAttnBlock"]


@pytest.mark.parametrize("name", [*IMAGES, "janus.JanusVQVAEAttnBlock"])
def test_attention_in_an_image_by_hand(name: str) -> None:
    module, image = made(name, 32), rows(2, 3, 4).permute(0, 3, 1, 2).contiguous()

    def reference(inside: nn.Module, x: Tensor) -> Tensor:
        q, k, v = (layer(inside.norm(x)).flatten(2).mT for layer in (inside.q, inside.k, inside.v))
        out = diagonal_product(attention_rows(q[:, None], k[:, None], v[:, None])[:, 0])
        return x + inside.proj_out(out.mT.reshape(x.shape))

    proved(module, image, reference=reference)


def test_attention_in_a_series_by_hand() -> None:
    settings = config(decoder_hidden_size=32, decoder_attention_num_groups=4, norm_eps=1e-6)
    module, series = made("wavtokenizer.WavTokenizerVocosAttention", settings), rows(2, 9).mT.contiguous()

    def reference(inside: nn.Module, x: Tensor) -> Tensor:
        q, k, v = (layer(inside.norm(x)).mT for layer in (inside.q, inside.k, inside.v))
        return x + inside.proj_out(diagonal_product(attention_rows(q[:, None], k[:, None], v[:, None])[:, 0]).mT)

    proved(module, series, reference=reference)


def test_groupvit_assignment() -> None:
    """Hard in evaluation, so that a group without a token has a zero row."""
    module = made("groupvit.GroupViTAssignAttention", config(assign_eps=1.0))

    def reference(inside: nn.Module, *args: Tensor) -> Tensor:
        projection, inside.proj = inside.proj, nn.Identity()
        return projection(diagonal_product(inside(*args)[0]))

    proved(module, QUERY, KEY, reference=reference)


def test_gemma3n_audio() -> None:
    settings = transformers.Gemma3nAudioConfig(
        hidden_size=32,
        conf_num_attention_heads=4,
        conf_attention_chunk_size=4,
        conf_attention_context_left=3,
        conf_attention_context_right=0,
    )
    module, mask = made("gemma3n.Gemma3nAudioAttention", settings).float(), torch.zeros(2, 9, dtype=torch.bool)
    mask[1, 6:] = True
    proof = compare(module.eval(), KEY.float(), mask, config=PreconditionConfig())
    assert proof.error <= 1e-5
    assert proof.effect > 1e-3
    assert proof.widths == {8}


@pytest.mark.parametrize("train", [False, True])
def test_aimv2_pooling(train: bool) -> None:
    module = made("aimv2.Aimv2AttentionPoolingHead", config()).train(train)
    with pytest.raises(ValueError, match=r"include=\('softmax', 'channel', 'pooling'\) converts it"):
        precondition_(module)
    proof = compare(module, KEY, include=["pooling"])
    assert proof.error <= 1e-12
    assert proof.effect > 1e-3
    assert proof.widths == {8}


def test_pair_pooling_by_hand() -> None:
    module = made("esmfold2.EsmFold2RowAttentionPooling", config(pairwise_hidden_size=32))
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 6:] = False
    pairs_BNNP = rows(2, 9, 9)

    def reference(inside: nn.Module, x: Tensor, keep: Tensor) -> Tensor:
        scores = inside.attn_proj(x)[..., 0].masked_fill(~keep[:, None], -torch.inf)
        return inside.out_proj(diagonal_product((scores.softmax(dim=-1)[..., None] * x).sum(dim=-2)))

    # theirs takes the softmax in float32
    proof = compare(module, pairs_BNNP, mask, include=["pooling"], reference=reference)
    assert proof.error <= 1e-6
    assert proof.effect > 1e-3


def test_invariant_points() -> None:
    """Only the scalars, which come first, are scaled; the reference knows how they are mixed."""
    esmfold = importlib.import_module("transformers.models.esm.modeling_esmfold")
    settings = config(
        sequence_dim=32,
        pairwise_dim=6,
        ipa_dim=8,
        num_heads_ipa=4,
        num_qk_points=2,
        num_v_points=3,
        inf=1e5,
        epsilon=1e-8,
    )
    module = made("esm.esmfold.EsmFoldInvariantPointAttention", settings)
    pairs_BNNP = torch.randn(2, 9, 9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    frames = esmfold.Rigid.identity(
        (2, 9), dtype=torch.float64, device=torch.device("cpu"), requires_grad=False, fmt="quat"
    )
    mask = torch.ones(2, 9, dtype=torch.float64)
    mask[1, 6:] = 0

    def reference(inside: nn.Module, *args: Tensor) -> Tensor:
        projection, merged = inside.linear_out, []
        inside.linear_out = nn.Identity()
        inside.softmax.register_forward_hook(lambda module, args, out: merged.append(out))
        x = inside(*args)
        values = inside.linear_kv(args[0]).unflatten(-1, (4, 16))[..., 8:].transpose(1, 2)
        scalars = diagonal_product(merged[0] @ values).transpose(1, 2).flatten(2)
        return projection(torch.cat([scalars, x[..., 32:]], dim=-1))

    proved(module, KEY, pairs_BNNP, frames, mask, reference=reference)


@pytest.mark.parametrize("name", ["autoformer.AutoformerAttention", "informer.InformerProbSparseAttention"])
@pytest.mark.parametrize("is_decoder", [False, True])
def test_time_series(name: str, is_decoder: bool) -> None:
    """The merged heads are what an identity in the projection's place returns."""
    options = {"sampling_factor": 1} if name.startswith("informer") else {"autocorrelation_factor": 2}
    module = made(name, 32, 4, is_decoder=is_decoder, **options)

    def reference(inside: nn.Module, x: Tensor) -> Tensor:
        projection, inside.out_proj = inside.out_proj, nn.Identity()
        return projection(normalized(inside(x)[0]))

    single = name.startswith("autoformer")  # it sums in float32
    module, x = (module.float(), rows(2, 12).float()) if single else (module, rows(2, 12))
    for train in (False, True):
        proof = compare(module.train(train), x, config=PreconditionConfig(), reference=reference)
        assert proof.error <= (1e-5 if single else 1e-12)
        assert proof.effect > 1e-3


def test_mra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernel needs a GPU; exact attention stands in, without the padding that it gets and loses again."""
    library = importlib.import_module("transformers.models.mra.modeling_mra")

    def approximation(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, *_: object, **__: object) -> Tensor:
        keep = mask.view(2, 4, 1, 9).bool()
        return nn.functional.scaled_dot_product_attention(q, k, v, keep, scale=8**-0.5)

    monkeypatch.setattr(library, "mra2_attention", approximation)
    settings = config(block_per_row=1, approx_mode="full", initial_prior_first_n_blocks=0)
    settings.initial_prior_diagonal_n_blocks = 0
    module = made("mra.MraSelfAttention", settings).float().eval()
    mask = torch.ones(2, 1, 9, dtype=torch.int32)
    mask[1, 0, 6:] = 0

    def reference(inside: nn.Module, x: Tensor, keep: Tensor) -> Tensor:
        q, k, v = (heads(layer(x)) for layer in (inside.query, inside.key, inside.value))
        # upstream deals its masks out to the heads sample by sample, where it should head by head
        dealt = keep[:, 0].repeat(4, 1).view(2, 4, 1, 9).bool()
        return diagonal_product(attention_rows(q, k, v, dealt)).transpose(1, 2).flatten(2)

    proof = compare(module, KEY.float(), mask, config=PreconditionConfig(), reference=reference)
    assert proof.error <= 1e-5
    assert proof.effect > 1e-3


@pytest.mark.parametrize("name", ["d_fine.DFine", "deimv2.Deimv2"])
@pytest.mark.parametrize("method", ["default", "discrete"])
def test_deformable_attention_without_a_projection(name: str, method: str) -> None:
    settings = config(num_feature_levels=2, decoder_n_points=[3, 2], decoder_offset_scale=0.5, decoder_method=method)
    module = made(f"{name}MultiscaleDeformableAttention", settings)
    shapes = [(4, 4), (2, 2)]
    args = (rows(2, 7), None, torch.rand(2, 7, 1, 4).double(), rows(2, 20), torch.tensor(shapes), shapes)

    def reference(inside: nn.Module, *args: Tensor) -> Tensor:
        sample = inside.ms_deformable_attn_core
        inside.ms_deformable_attn_core = lambda *given: normalized(sample(*given))
        return inside(*args)[0]

    proved(module, *args, reference=reference)


def test_minimax_with_linear_attention() -> None:
    """By the sum over all earlier tokens, with each head's decay, written out."""
    settings = {**EXPERTS, "block_size": 4, "layer_types": ["linear_attention", "full_attention"]}
    case = Case("minimax", settings)
    model, given = case.build(), tokens()
    report = precondition_(model)
    assert [entry.status for entry in report.entries] == ["skipped", "converted"]
    restore_(model)
    module = first_attention(model)

    def reference(inside: nn.Module, x: Tensor, *_: object) -> Tensor:
        q, k, v = inside.act_fn(inside.qkv_proj(x)).unflatten(-1, (4, 24)).transpose(1, 2).split(8, dim=-1)
        apart = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])
        decay = torch.where(apart >= 0, (-inside.slope_rate * apart).exp(), 0.0)
        out = normalized((q @ k.mT * decay @ v).transpose(1, 2).flatten(2))
        return inside.out_proj(inside.output_gate(x).sigmoid() * inside.norm(out))

    proof = compare(module, KEY, (None, None), None, include=["linear"], reference=reference)
    assert proof.error <= 1e-6, "the decays are in float32"
    assert proof.effect > 1e-3
    report = precondition_(model, include=["softmax", "linear"], strict=True)
    assert len(report.converted) == 2
    report.verify(**given)


def test_integer_bert_is_refused() -> None:
    model = transformers.IBertModel(transformers.IBertConfig(**TEXT, quant_mode=True))
    with pytest.raises(ValueError, match="quant_mode=True: integers with scaling factors"):
        precondition_(model)


def test_lilt_as_a_whole() -> None:
    """The classes of this file in a model, with padding, converted, verified and restored."""
    settings = {**TEXT, "hidden_size": 48, "channel_shrink_ratio": 2, "max_2d_position_embeddings": 32}
    model, given = Case("lilt", settings, boxes).build(), boxes()
    plain = outputs(model, given)
    report = precondition_(model, PreconditionConfig(gain=0.5), strict=True)
    assert all(result.calls == 2 for result in report.verify(**given)), "one call for each stream"
    restore_(model)
    assert torch.equal(outputs(model, given), plain)
