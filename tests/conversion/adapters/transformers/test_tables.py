import importlib

import pytest
import torch
from torch import Tensor, nn

from preconditioned_attention import PreconditionConfig, precondition_, restore_
from preconditioned_attention.conversion.adapters.transformers.tables import HOOKS, SINGLE_HEAD_CLASSES
from preconditioned_attention.conversion.class_names import class_name
from tests.helpers.explicit import attention_rows, diagonal_product, relative_error
from tests.helpers.oracle import compare, jitter_, normalizing_inside
from tests.helpers.transformers_cases import Case, check, first_attention, outputs, tokens
from tests.helpers.transformers_hook_cases import HOOKED
from tests.helpers.transformers_modules import (
    MODULES,
    SINGLE,
    attention_class,
    build,
    config,
    heads,
    normalized,
    rows,
)

DEFORMABLE = [
    name
    for name, row in HOOKS.items()
    if name.endswith("DeformableAttention") and row.hook_targets  # those that return their heads are in test_hooks
]
IN_TEST_HOOKS = {
    class_name(attention_class(name))
    for name in (
        "aimv2.Aimv2AttentionPoolingHead",
        "autoformer.AutoformerAttention",
        "big_bird.BigBirdAttention",
        "bigbird_pegasus.BigBirdPegasusEncoderAttention",
        "convbert.ConvBertSelfAttention",
        "d_fine.DFineMultiscaleDeformableAttention",
        "deimv2.Deimv2MultiscaleDeformableAttention",
        "esm.esmfold.EsmFoldInvariantPointAttention",
        "esmfold2.EsmFold2RowAttentionPooling",
        "gemma3n.Gemma3nAudioAttention",
        "ibert.IBertSelfAttention",
        "informer.InformerProbSparseAttention",
        "minimax.MiniMaxLightningAttention",
        "mra.MraSelfAttention",
        "squeezebert.SqueezeBertSelfAttention",
    )
}
BY_HAND = {"wavlm", "nystromformer", "longformer", "led"}  # the watching oracle does not follow these
SLICE = ["deberta-v2", "falcon", "levit", "xlnet"]
REST = sorted(set(HOOKED) - BY_HAND - set(SLICE))


@pytest.mark.parametrize("name", SLICE)
def test_tiny_models(name: str) -> None:
    check(HOOKED[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", REST)
def test_more_tiny_models(name: str) -> None:
    check(HOOKED[name])


@pytest.mark.slow
def test_every_class_of_the_tables_is_in_some_test() -> None:
    tested = {class_name(attention_class(name)) for name in MODULES}
    tested |= {class_name(type(module)) for case in HOOKED.values() for module in case.build().modules()}
    parts = ("Flash", "BiMultiHead", "GlobalLocal", "VitsAttention", "NeighborhoodAttention")
    by_their_own_tests = {*DEFORMABLE, *(name for name in HOOKS if any(part in name for part in parts))}
    assert set(HOOKS) - by_their_own_tests - IN_TEST_HOOKS <= tested


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(HOOKED) - BY_HAND))
def test_tiny_models_in_training(name: str) -> None:
    check(HOOKED[name], train=True)


def longformer_rows(module: nn.Module, x: Tensor, masked: Tensor, everywhere: Tensor) -> Tensor:
    """Dense attention with the local window as a mask; tokens with global attention have projections of their own."""
    near = (torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])).abs() <= module.one_sided_attn_window_size
    seen = (near | everywhere[:, None, :]) & ~masked[:, None, :]
    local = attention_rows(heads(module.query(x)), heads(module.key(x)), heads(module.value(x)), seen[:, None])
    wide = attention_rows(
        *(heads(layer(x)) for layer in (module.query_global, module.key_global, module.value_global)),
        ~masked[:, None, None, :],
    )
    rows = torch.where(everywhere[:, None, :, None], wide, local)
    return rows.masked_fill(masked[:, None, :, None], 0.0)


@pytest.mark.parametrize("name", ["longformer", "led"])
@pytest.mark.parametrize("with_global", [False, True])
def test_longformer(name: str, with_global: bool) -> None:
    """Its softmax is in float32 whatever the dtype, hence the bound."""
    module = first_attention(HOOKED[name].build())
    x = torch.randn(2, 12, 32, dtype=torch.float64)
    masked, everywhere = torch.zeros(2, 12, dtype=torch.bool), torch.zeros(2, 12, dtype=torch.bool)
    masked[1, 8:] = True
    if with_global:
        everywhere[0, 0], everywhere[0, 5], everywhere[1, 2] = True, True, True
    mask = masked * -10000.0 + everywhere * 10000.0

    def reference(inside: nn.Module, x: Tensor, *_: Tensor) -> Tensor:
        rows = longformer_rows(inside, x, masked, everywhere)
        return diagonal_product(rows).transpose(1, 2).flatten(2)

    args = (x, mask.double(), masked, everywhere, with_global)
    proof = compare(module, *args, config=PreconditionConfig(), reference=reference)
    assert proof.error <= 1e-6
    assert proof.effect > 1e-3


def test_both_ways_through_falcon() -> None:
    """It chooses between two computations inside its attention class."""
    settings = HOOKED["falcon"].config
    sdpa, eager = (Case("falcon", {**settings, "attn_implementation": name}).build() for name in ("sdpa", "eager"))
    given = HOOKED["falcon"].inputs()
    for model in (sdpa, eager):
        precondition_(model, strict=True)
    assert relative_error(outputs(eager, given), outputs(sdpa, given)) <= 1e-10
    weights = eager(**given, output_attentions=True).attentions
    assert [x.shape for x in weights] == [(2, 4, 12, 12)] * 2


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["bloom", "falcon", "gpt_neo", "gptj"])
def test_generation_with_a_cache_equals_generation_without(name: str, cache: str) -> None:
    model = jitter_(Case(HOOKED[name].model_type, HOOKED[name].config, model="AutoModelForCausalLM").build(), 0.5)
    given, options = {"input_ids": tokens()["input_ids"][:1]}, {"do_sample": False, "pad_token_id": 0}
    options |= {"min_new_tokens": 5, "max_new_tokens": 5}
    precondition_(model)
    expected = model.generate(**given, **options, use_cache=False)
    assert torch.equal(model.generate(**given, **options, cache_implementation=cache), expected)


# They stay in the tables for the versions that have them, up to transformers 5.23.
GONE = {"transformers.models.gptj.modeling_gptj.GPTJFlashAttention2"}


def test_every_name_of_the_tables_exists() -> None:
    """Fails when a new transformers renames a class: it would be left out silently."""
    for name in [*HOOKS, *SINGLE_HEAD_CLASSES]:
        module, _, cls = name.rpartition(".")
        if name in GONE:
            continue
        assert issubclass(getattr(__import__(module, fromlist=[cls]), cls), nn.Module), name


class Streams(nn.Module):
    """Both outputs of an attention that has two, in one tensor."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, *args: Tensor) -> Tensor:
        (first, _), (second, _) = self.attention(*args)
        return torch.cat([first, second], dim=1)


@pytest.mark.parametrize("name", ["grounding_dino.GroundingDino", "mm_grounding_dino.MMGroundingDino"])
def test_attention_between_image_and_text(name: str) -> None:
    settings = config(encoder_ffn_dim=64, encoder_attention_heads=8, fusion_dropout=0.0)
    module = jitter_(Streams(attention_class(f"{name}BiMultiHeadAttention")(settings))).double()
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[1, 3:] = True
    args = (rows(2, 9), rows(2, 5), None, padding)
    for train in (False, True):
        plain = module.train(train)(*args)
        with normalizing_inside(module, type(module.attention)) as widths:
            expected = module(*args)
        precondition_(module)
        assert widths == [8, 8]
        assert relative_error(module(*args), expected) <= 1e-12
        assert relative_error(plain, expected) > 1e-3
        restore_(module)
        assert torch.equal(module(*args), plain)


LEVELS = {"num_feature_levels": 2, "decoder_n_levels": 2, "decoder_n_points": 3, "decoder_offset_scale": 0.5}


@pytest.mark.parametrize("name", DEFORMABLE, ids=lambda name: name.rpartition(".")[2])
def test_deformable_attention(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows: softmax-weighted sums of the sampled values, as the sampling module or function returns them."""
    library, cls = importlib.import_module(name.rpartition(".")[0]), name.rpartition(".")[2]
    settings = config(**LEVELS, num_queries=7, decoder_method="default", disable_custom_kernels=True, n_levels=2)
    # Three constructors are in use, and two orders of what comes last in a call.
    made_of = {"RTDetrV2MultiscaleDeformableAttention": (settings,)}.get(cls, (settings, 4, 3))
    module = getattr(library, cls)(*((32, 4, 2, 3) if "PixelDecoder" in cls else made_of))
    module = jitter_(module).double()
    shapes = [(4, 4), (2, 2)]
    where = torch.rand(*(2, 7, 1, 4) if cls.startswith("RTDetrV2") else (2, 7, 2, 2), dtype=torch.float64)
    last = {"mask2former": [shapes], "oneformer": [torch.tensor(shapes), None, False, shapes]}
    tail = last.get(library.__name__.split(".")[2], [torch.tensor(shapes), shapes, torch.tensor([0, 16])])
    args = [rows(2, 7), None, rows(2, 20), None, None, where, *tail]
    sampler = next((s for s in vars(library) if s.startswith("multi_scale_deformable_attention")), None)

    def reference(inside: nn.Module, *args: Tensor) -> Tensor:
        if sampler is None:
            inside.attn.register_forward_hook(lambda module, args, out: normalized(out))
            return inside(*args)[0]
        with monkeypatch.context() as patch:
            sample = getattr(library, sampler)
            patch.setattr(library, sampler, lambda *args: normalized(sample(*args)))
            return inside(*args)[0]

    for train in (False, True):
        proof = compare(module.train(train), *args, config=PreconditionConfig(), reference=reference)
        assert proof.error <= 1e-12
        assert proof.effect > 1e-3


@pytest.mark.parametrize("name", ["bark", "falcon", "gpt_neo", "gptj"])
def test_flash_attention_classes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch's function in the place of the kernel, which needs a GPU; its queries are (B, N, H, d)."""
    library = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    if f"{library.__name__}.GPTJFlashAttention2" in GONE and not hasattr(library, "GPTJFlashAttention2"):
        pytest.skip("transformers 5.24 has dropped it")
    module = {
        "bark": lambda: library.BarkSelfFlashAttention2(config(block_size=16), True),
        "falcon": lambda: library.FalconFlashAttention2(HOOKED["falcon"].build().config, 0),
        "gpt_neo": lambda: library.GPTNeoFlashAttention2(HOOKED["gpt_neo"].build().config, "global", 0),
        "gptj": lambda: library.GPTJFlashAttention2(HOOKED["gptj"].build().config, 0),
    }[name]()
    rotary = torch.rand(1, 9, 8).double(), torch.rand(1, 9, 8).double()
    args = {"falcon": (None, None, None, None, False, False, rotary), "gptj": (None, None, torch.arange(9)[None])}

    def kernel(query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object) -> Tensor:
        # F's, not torch's: the watching oracle looks at the calls of the attention's own forward
        out = nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value)))
        return out.transpose(1, 2)

    # neither name is there without flash-attn
    monkeypatch.setattr(library, "_flash_attention_forward", kernel, raising=False)
    monkeypatch.setattr(library, "get_target_dtype", lambda *_: None, raising=False)
    proof = compare(jitter_(module).double().eval(), rows(2, 9), *args.get(name, ()), config=PreconditionConfig())
    assert proof.error <= 1e-12
    assert proof.effect > 1e-3
    assert proof.widths == {8}


def without_projection(inside: nn.Module, *args: Tensor) -> Tensor:
    """An identity in the projection's place returns the merged heads, which are normalized and then projected."""
    projection, inside.out_proj = inside.out_proj, nn.Identity()
    return projection(normalized(inside(*args)[0]))


@pytest.mark.parametrize("window", [None, 3])
def test_vits(window: int | None) -> None:
    """Its head's output is the sum of two products, of the values and of embeddings of their relative positions."""
    settings = config(use_bias=True, window_size=window)
    module = jitter_(attention_class("vits.VitsAttention")(settings)).double()
    args = (rows(2, 9), None, torch.zeros(2, 1, 9, 9).double().masked_fill(torch.arange(9) > 6, -1e4))
    for train in (False, True):
        proof = compare(module.train(train), *args, config=PreconditionConfig(), reference=without_projection)
        assert proof.error <= 1e-12
        assert proof.effect > 1e-3


def test_pegasus_x() -> None:
    """By dense attention with a mask: tokens see their block and the global tokens, those see everything."""
    module = jitter_(attention_class("pegasus_x.PegasusXGlobalLocalAttention")(32, 4, block_size=4)).double()
    x, everywhere = rows(2, 12), rows(1, 2, 3)[0]
    padding = torch.zeros(2, 12, dtype=torch.float64)
    padding[1, 8:] = -1e9

    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = module

        def forward(self, *args: Tensor) -> Tensor:
            local, wide, _ = self.attention(*args)
            return torch.cat([wide, local], dim=1)

    def reference(inside: Joined, x: Tensor, wide: Tensor, padding: Tensor) -> Tensor:
        a, both = inside.attention, torch.cat([wide, x], dim=1)
        q, k, v = (heads(layer(both)) for layer in (a.q_proj, a.k_proj, a.v_proj))
        block = torch.cat([torch.full((3,), -1), torch.arange(12) // 4])
        seen = (block[:, None] == block) | (block == -1) | (block[:, None] == -1)
        mask = torch.where(seen, 0.0, -torch.inf).double() + nn.functional.pad(padding, (3, 0))[:, None, None]
        return a.out_proj(diagonal_product(attention_rows(q, k, v, mask)).transpose(1, 2).flatten(2))

    for train in (False, True):
        proof = compare(Joined().train(train), x, everywhere, padding, config=PreconditionConfig(), reference=reference)
        assert proof.error <= 1e-12
        assert proof.effect > 1e-3


def test_neighborhoods(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernels are in a package of their own; in their place, attention within every slice of the first axes."""
    library = importlib.import_module("transformers.models.dinat.modeling_dinat")

    def scores(query: Tensor, key: Tensor, *_: object) -> Tensor:
        return query.flatten(2, 3) @ key.flatten(2, 3).mT

    def products(weights: Tensor, value: Tensor, *_: object) -> Tensor:
        return (weights @ value.flatten(2, 3)).view_as(value)

    monkeypatch.setattr(library, "natten2dqkrpb", scores)
    monkeypatch.setattr(library, "natten2dav", products)
    module = jitter_(attention_class("dinat.NeighborhoodAttention")(config(), 32, 4, 3, 1)).double()
    for train in (False, True):
        proof = compare(module.train(train), rows(2, 4, 4), config=PreconditionConfig())
        assert proof.error <= 1e-12
        assert proof.effect > 1e-3
        assert proof.widths == {8}


@pytest.mark.parametrize("name", MODULES)
def test_modules(name: str) -> None:
    module, args = build(name)
    for train in (False, True):
        proof = compare(module.train(train), *args, config=PreconditionConfig())
        assert proof.error <= (1e-5 if name in SINGLE else 1e-10)
        assert proof.effect > 1e-3
        assert proof.widths == {proof.report.converted[0].head_dim}
