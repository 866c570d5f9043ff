import pytest
from timm.layers import attention
from torch import nn

from preconditioned_attention import precondition_
from preconditioned_attention.conversion.adapters.timm.unsupported import UNSUPPORTED
from preconditioned_attention.conversion.class_names import class_name
from tests.helpers.timm_cases import REFUSED


@pytest.mark.parametrize("reason", REFUSED)
def test_refused_with_the_reason(reason: str) -> None:
    for build in REFUSED[reason]:
        holder = nn.Sequential(build(), attention.Attention(12, 3))
        left_out = precondition_(holder, include="all").left_out
        assert [entry.status for entry in left_out] == ["unsupported"]
        assert reason in left_out[0].reason
        with pytest.raises(ValueError, match="strict=True"):
            precondition_(nn.Sequential(build(), attention.Attention(12, 3)), include="all", strict=True)


def test_every_class_of_the_table_is_built_here() -> None:
    built = {class_name(type(build())) for builds in REFUSED.values() for build in builds}
    assert built - set(UNSUPPORTED) == {"timm.layers.other_pool.SimPool1d"}, "refused for an option"
    assert set(UNSUPPORTED) <= built
