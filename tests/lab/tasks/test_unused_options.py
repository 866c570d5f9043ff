from dataclasses import dataclass

import pytest

from preconditioned_attention.lab.tasks import CausalLM, MaskedLM
from preconditioned_attention.lab.tasks.unused_options import check_unused


@dataclass
class Options:
    root: str | None = None
    size: int = 3


def test_a_default_is_no_request() -> None:
    check_unused(Options(), "root", "size", reason="it comes with Python")


def test_names_and_values_are_told() -> None:
    with pytest.raises(ValueError, match=r"root='/data', size=4 would have no effect \(it comes with Python\)"):
        check_unused(Options("/data", 4), "root", "size", reason="it comes with Python")


@pytest.mark.parametrize("options", [{"root": "x"}, {"cache": "x"}, {"tokenizer": "x.json", "vocab_size": 300}])
def test_causal_lm_on_the_python_reference(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="would have no effect"):
        CausalLM(**options)


@pytest.mark.parametrize("options", [{"root": "x"}, {"tokenizer": "x.json"}])
def test_masked_lm_on_the_python_reference(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="would have no effect"):
        MaskedLM(**options)
