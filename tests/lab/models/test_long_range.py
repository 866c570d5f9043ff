import pytest
import torch

from preconditioned_attention import PreconditionConfig, precondition_
from preconditioned_attention.lab.models.long_range import LongRangeEncoder

SMALL = {"vocabulary": 12, "positions": 64, "classes": 3, "dim": 8, "num_landmarks": 8, "conv_kernel_size": 5}


def build(**options: object) -> LongRangeEncoder:
    torch.manual_seed(0)
    model = LongRangeEncoder(**{**SMALL, **options}).double().eval()
    for parameter in model.parameters():  # fresh embeddings are too small for differences to show
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def random_ids(batch: int, length: int) -> torch.Tensor:
    return torch.randint(1, 12, (batch, length), generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({"vocabulary": 32, "positions": 2048, "classes": 10}, 209_942),  # ListOps
        ({"vocabulary": 512, "positions": 4096, "classes": 2}, 370_702),  # Text
        ({"vocabulary": 512, "positions": 4096, "classes": 2, "inputs": 2}, 395_278),  # Retrieval
        ({"vocabulary": 512, "positions": 1024, "classes": 10}, 175_126),  # Image
        ({"vocabulary": 512, "positions": 1024, "classes": 2}, 174_094),  # Pathfinder
    ],
)
def test_parameter_counts_are_the_published_ones(options: dict, parameters: int) -> None:
    assert sum(p.numel() for p in LongRangeEncoder(**options).parameters()) == parameters
    without_convolution = parameters - 2 * 2 * 35
    exact = LongRangeEncoder(**options, attention="softmax")
    assert sum(p.numel() for p in exact.parameters()) == without_convolution


KINDS = pytest.mark.parametrize(
    ("attention", "config"),
    [
        ("nystrom", None),
        ("nystrom", PreconditionConfig()),
        ("nystrom", PreconditionConfig(placement="post_skip")),
        ("softmax", None),
        ("softmax", PreconditionConfig()),
    ],
)


@KINDS
def test_a_sample_does_not_see_its_batch_mates(attention: str, config: PreconditionConfig | None) -> None:
    model = build(attention=attention)
    if config is not None:
        precondition_(model, config)
    lengths = (64, 40, 23, 8, 3, 1)  # among them fewer tokens than landmarks, and numbers that they do not divide
    ids = torch.zeros(len(lengths) + 1, 64, dtype=torch.int64)  # the last sample is padding alone
    for row, length in enumerate(lengths):
        ids[row, :length] = random_ids(1, length)[0]
    together = model(ids)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(model(ids[row : row + 1, :length])[0], together[row], rtol=0, atol=1e-10)
        torch.testing.assert_close(model(ids[row : row + 1])[0], together[row], rtol=0, atol=1e-10)
    assert together.isfinite().all()
    assert (together[0] - together[1]).abs().max() > 1e-4


@KINDS
def test_padding_may_stand_anywhere_and_has_no_gradient(attention: str, config: PreconditionConfig | None) -> None:
    model = build(attention=attention)
    if config is not None:
        precondition_(model, config)
    ids = random_ids(2, 30)
    ids[0, 7:15] = 0
    model(ids)[0].sum().backward()
    assert model.places.weight.grad[30:].abs().max() == 0
    assert model.tokens.weight.grad[0].abs().max() == 0
    assert model.tokens.weight.grad.isfinite().all()


@pytest.mark.parametrize("length", [7, 8, 9, 33, 61, 64])
def test_landmarks_need_not_divide_the_length(length: int) -> None:
    ids = random_ids(3, length)
    assert build()(ids).shape == (3, 3)


def test_pairs_go_through_one_encoder() -> None:
    model = build(inputs=2)
    first, second = random_ids(4, 20), random_ids(4, 33)
    logits = model(first, second)
    assert logits.shape == (4, 3)
    u, v = model._encode(first), model._encode(second)
    torch.testing.assert_close(model.head(torch.cat([u, v, u * v, u - v], dim=-1)), logits)
    assert not torch.allclose(model(second, first), logits)
    with pytest.raises(ValueError, match=r"built for 2 input\(s\); got 1"):
        model(first)
    with pytest.raises(ValueError, match=r"built for 1 input\(s\); got 2"):
        build()(first, second)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "linear"}, "attention must be one of 'nystrom', 'softmax'"),
        ({"inputs": 3}, "inputs must be 1 or 2"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"positions": 0}, "positions must be at least 1"),
        ({"dim": 9}, "dim must be a multiple of num_heads"),
    ],
)
def test_options_that_cannot_be(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LongRangeEncoder(**{**SMALL, **options})


def test_inputs_longer_than_the_positions() -> None:
    with pytest.raises(ValueError, match=r"at most 64 tokens; got \(1, 65\)"):
        build()(random_ids(1, 65))
