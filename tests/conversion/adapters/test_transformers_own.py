import copy

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention
from transformers.models.grounding_dino import modeling_grounding_dino as grounding_dino
from transformers.models.mask2former import modeling_mask2former as mask2former

from preconditioned_attention import PreconditionConfig, precondition_, restore_
from preconditioned_attention.conversion.adapters.transformers_own import (
    BLOCK_SPARSE,
    DEFORMABLE,
    NO_ROWS,
    RETURNED,
    SEEN_BY,
    SWAPPED,
)
from preconditioned_attention.conversion.registry import find_adapter
from tests.conversion.adapters.transformers_modules import MODULES, SINGLE, build
from tests.conversion.adapters.transformers_zoo import OWN, check
from tests.conversion.oracle import compare, jitter_, normalising_inside
from tests.explicit import attention_rows, diagonal_product, relative_error

BY_HAND = {"wavlm", "nystromformer", "longformer", "led"}  # the watching oracle does not follow these
SLICE = ["deberta-v2", "falcon", "levit", "xlnet"]
REST = sorted(set(OWN) - BY_HAND - set(SLICE))


@pytest.mark.parametrize("name", SLICE)
def test_tiny_models(name: str) -> None:
    check(OWN[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", REST)
def test_more_tiny_models(name: str) -> None:
    check(OWN[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(OWN) - BY_HAND))
def test_tiny_models_in_training(name: str) -> None:
    check(OWN[name], train=True)


def heads(x: Tensor, width: int = 8) -> Tensor:
    return x.unflatten(-1, (-1, width)).transpose(1, 2)


def normalised(merged: Tensor, width: int = 8) -> Tensor:
    """Merged heads, every row of every head scaled to length one."""
    return diagonal_product(heads(merged, width)).transpose(1, 2).flatten(2)


def own(name: str) -> tuple[nn.Module, nn.Module]:
    """A tiny model and the first attention in it that has an adapter."""
    model = OWN[name].build()
    return model, next(module for module in model.modules() if find_adapter(module))


@pytest.mark.parametrize("placement", ["pre_skip", "post_skip"])
@pytest.mark.parametrize("landmarks", [4, 12])
def test_nystromformer(placement: str, landmarks: int) -> None:
    """The skip is what is left when a copy without the convolution is taken away."""
    module = own("nystromformer")[1]
    module.num_landmarks = landmarks
    x, mask = torch.randn(2, 12, 32, dtype=torch.float64), torch.zeros(2, 1, 1, 12, dtype=torch.float64)
    mask[1, ..., 8:] = -1e4

    def reference(inside: nn.Module, *args: Tensor) -> Tensor:
        whole = inside(*args)[0]
        inside.conv_kernel_size = None
        rows = inside(*args)[0]
        return normalised(rows) + (whole - rows) if placement == "pre_skip" else normalised(whole)

    for train in (False, True):
        proof = compare(
            module.train(train), x, mask, config=PreconditionConfig(placement=placement), reference=reference
        )
        assert proof.error <= 1e-12
        assert proof.effect > 1e-3


def test_nystromformer_without_a_skip() -> None:
    module = own("nystromformer")[1]
    module.conv_kernel_size = None
    x = torch.randn(2, 12, 32, dtype=torch.float64)
    proof = compare(module, x, config=PreconditionConfig(), reference=lambda inside, x: normalised(inside(x)[0]))
    assert proof.error <= 1e-12


def test_wavlm() -> None:
    """torch's function with the identity for its projection gives the merged heads."""
    module = own("wavlm")[1]
    x, mask = torch.randn(2, 9, 32, dtype=torch.float64), torch.ones(2, 9)
    mask[1, 6:] = 0

    def reference(inside: nn.Module, *args: Tensor) -> Tensor:
        projection = copy.deepcopy(inside.out_proj)
        with torch.no_grad():
            inside.out_proj.weight.copy_(torch.eye(32))
            inside.out_proj.bias.zero_()
        return projection(normalised(inside(*args)[0]))

    for train in (False, True):
        proof = compare(module.train(train), x, mask, config=PreconditionConfig(), reference=reference)
        assert proof.error <= 1e-12
        assert proof.effect > 1e-3
    plain = module(x, mask)
    precondition_(module)
    for theirs, ours in zip(plain[1:], module(x, mask)[1:], strict=True):
        assert relative_error(ours, theirs) <= 1e-12, "the weights and the position bias are as they were"


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
    module = own(name)[1]
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


def test_big_bird_refuses_what_the_model_replaces() -> None:
    model = transformers.BigBirdModel(
        transformers.BigBirdConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32, vocab_size=40
        )
    )
    assert any(isinstance(module, BigBirdBlockSparseAttention) for module in model.modules())
    with pytest.raises(ValueError, match=r"nothing to convert[\s\S]*original_full"):
        precondition_(model)


def test_every_name_of_the_tables_exists() -> None:
    """Fails when a new transformers renames a class: it would be left out silently."""
    for name in [*RETURNED, *SEEN_BY, *DEFORMABLE, *SWAPPED, *BLOCK_SPARSE, *NO_ROWS]:
        module, _, cls = name.rpartition(".")
        assert issubclass(getattr(__import__(module, fromlist=[cls]), cls), nn.Module), name


class Streams(nn.Module):
    """Both outputs of an attention that has two, in one tensor."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, *args: Tensor) -> Tensor:
        (first, _), (second, _) = self.attention(*args)
        return torch.cat([first, second], dim=1)


GROUNDING = transformers.GroundingDinoConfig(
    d_model=32, encoder_ffn_dim=64, encoder_attention_heads=8, num_feature_levels=2, attention_dropout=0.0
)


@pytest.mark.parametrize("train", [False, True])
def test_attention_between_image_and_text(train: bool) -> None:
    module = Streams(grounding_dino.GroundingDinoBiMultiHeadAttention(GROUNDING)).double().train(train)
    module.attention.dropout = 0.0
    image, text = torch.randn(2, 9, 32, dtype=torch.float64), torch.randn(2, 5, 32, dtype=torch.float64)
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[1, 3:] = True
    plain = module(image, text, None, padding)
    with normalising_inside(module, type(module.attention)) as widths:
        expected = module(image, text, None, padding)
    precondition_(module)
    assert widths == [8, 8]
    assert relative_error(module(image, text, None, padding), expected) <= 1e-12
    assert relative_error(plain, expected) > 1e-3
    restore_(module)
    assert torch.equal(module(image, text, None, padding), plain)


def deformable(library: str) -> tuple[nn.Module, list]:
    """Deformable attention over two feature maps, 4 x 4 and 2 x 2, and what it is called with."""
    query, values = torch.randn(2, 7, 32, dtype=torch.float64), torch.randn(2, 20, 32, dtype=torch.float64)
    points, shapes = torch.rand(2, 7, 2, 2, dtype=torch.float64), [(4, 4), (2, 2)]
    if library == "mask2former":
        module = mask2former.Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention(32, 4, n_levels=2, n_points=3)
        return module, [query, None, values, None, None, points, shapes]
    module = grounding_dino.GroundingDinoMultiscaleDeformableAttention(GROUNDING, num_heads=4, n_points=3)
    return module, [query, None, values, None, None, points, torch.tensor(shapes), shapes, torch.tensor([0, 16])]


@pytest.mark.parametrize("library", ["mask2former", "grounding_dino"])
@pytest.mark.parametrize("train", [False, True])
def test_deformable_attention(library: str, train: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows: softmax-weighted sums of the sampled values, as the sampling function returns them."""
    module, args = deformable(library)
    module = jitter_(module).double().train(train)

    def reference(inside: nn.Module, *args: Tensor) -> Tensor:
        if library == "grounding_dino":
            inside.attn.register_forward_hook(lambda module, args, out: normalised(out))
            return inside(*args)[0]
        with monkeypatch.context() as patch:
            sample = mask2former.multi_scale_deformable_attention
            patch.setattr(mask2former, "multi_scale_deformable_attention", lambda *args: normalised(sample(*args)))
            return inside(*args)[0]

    proof = compare(module, *args, config=PreconditionConfig(), reference=reference)
    assert proof.error <= 1e-12 < 1e-3 < proof.effect


@pytest.mark.parametrize("name", MODULES)
def test_modules(name: str) -> None:
    module, args = build(name)
    for train in (False, True):
        proof = compare(module.train(train), *args, config=PreconditionConfig())
        assert proof.error <= (1e-5 if name in SINGLE else 1e-10)
        assert proof.effect > 1e-3
        assert proof.widths == {proof.report.converted[0].head_dim}
