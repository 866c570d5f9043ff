import importlib

import pytest
from torch import nn

pytest.importorskip("diffusers")


from preconditioned_attention.conversion.adapters.diffusers.unsupported import UNSUPPORTED
from preconditioned_attention.conversion.registry import find_adapter


@pytest.mark.parametrize("name", UNSUPPORTED, ids=lambda name: name.rpartition(".")[2])
def test_every_class_exists_and_is_refused_for_its_reason(name: str) -> None:
    module, _, cls = name.rpartition(".")
    found = getattr(importlib.import_module(module), cls)
    assert issubclass(found, nn.Module)
    adapter = find_adapter(found.__new__(found))
    assert (adapter.kind, adapter.reason) == (UNSUPPORTED[name].kind, UNSUPPORTED[name].reason)
