import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import default_collate

from preconditioned_attention.lab.tasks import Digits

SMALL = {"embed_dim": 8, "depth": 2, "num_heads": 2}


def test_the_model_is_the_one_that_was_asked_for() -> None:
    model = Digits(patch_size=4, proj_drop_rate=0.1, attn_drop_rate=0.2, mlp_ratio=3.0, **SMALL).build_model()
    assert model(torch.randn(5, 1, 8, 8)).shape == (5, 10)
    assert len(model.blocks) == 2
    assert model.pos_embed.shape == (1, 5, 8)  # class token and 2 x 2 patches
    attention = model.blocks[0].attn
    assert (attention.num_heads, attention.attn_drop.p, attention.proj_drop.p) == (2, 0.2, 0.1)
    assert model.blocks[0].mlp.fc1.out_features == 24


def test_weights_come_from_the_global_generator() -> None:
    def build(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([parameter.flatten() for parameter in Digits(**SMALL).build_model().parameters()])

    assert torch.equal(build(1), build(1))
    assert not torch.equal(build(1), build(2))


def test_values_per_example_average_to_the_loss() -> None:
    task = Digits(**SMALL)
    model = task.build_model().eval()
    batch = default_collate([task.datasets().train[index] for index in range(20)])
    values = task.evaluate(model, batch)
    assert {name: value.shape for name, value in values.items()} == {"loss": (20,), "accuracy": (20,)}
    torch.testing.assert_close(values["loss"].mean(), task.loss(model, batch))
    torch.testing.assert_close(values["loss"], F.cross_entropy(model(batch[0]), batch[1], reduction="none"))
    assert values["accuracy"].tolist() == [
        float(g == y) for g, y in zip(model(batch[0]).argmax(1), batch[1], strict=True)
    ]


def test_example_batch_is_the_beginning_of_validation() -> None:
    task = Digits()
    (images,) = task.example_batch(4)
    assert images.shape == (4, 1, 8, 8)
    assert torch.equal(images[3], task.datasets().validation[3][0])
    assert len(task.example_batch(10_000)[0]) == 300


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 3}, "patch_size must divide the image size, 8; got 3"),
        ({"embed_dim": 10}, "embed_dim must be a multiple of num_heads; got embed_dim=10, num_heads=4"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"mlp_ratio": 0}, "mlp_ratio must be more than 0"),
        ({"proj_drop_rate": 1.0}, "proj_drop_rate must be at least 0 and less than 1"),
        ({"attn_drop_rate": -0.1}, "attn_drop_rate must be at least 0"),
        ({"split_seed": -1}, "split_seed must be at least 0"),
    ],
)
def test_options_that_cannot_be(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Digits(**options)
