import pytest
from torch import Tensor, nn

from preconditioned_attention.conversion.adapters.known_text_swap import KnownTextSwap, RequiredTextSwap
from preconditioned_attention.conversion.source_texts.reachable_code import text_digest


class Upstream(nn.Module):
    num_heads, head_dim = 2, 3

    def forward(self, x: Tensor) -> Tensor:
        return helper(x)


class Replacement(Upstream):
    pass


def helper(x: Tensor) -> Tensor:
    return x


def swap(base: type[KnownTextSwap], **digests: str) -> KnownTextSwap:
    methods = {"forward": digests.get("forward", text_digest(Upstream.forward))}
    functions = {helper: digests.get("helper", text_digest(helper))}
    options = {"original": Upstream, "replacement": Replacement, "methods": methods, "functions": functions}
    return type("Swap", (base,), {**options, "read_in": "upstream 1.0"})()


@pytest.mark.parametrize("digests", [{"forward": "another"}, {"helper": "another"}])
def test_the_text_of_every_function_counts(digests: dict[str, str]) -> None:
    assert swap(KnownTextSwap).is_text_known()
    assert not swap(KnownTextSwap, **digests).is_text_known()


def test_another_text_may_be_refused_with_a_reason() -> None:
    assert swap(RequiredTextSwap).unsupported_reason(Upstream()) is None
    reason = swap(RequiredTextSwap, forward="another").unsupported_reason(Upstream())
    assert "is not that of upstream 1.0" in str(reason)


def test_numbers_come_from_the_attributes() -> None:
    shape = swap(KnownTextSwap).shape(Upstream())
    assert (shape.num_heads, shape.head_dim) == (2, 3)
