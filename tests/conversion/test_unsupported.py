import subprocess
import sys

from preconditioned_attention.conversion.registry import registered_adapters
from preconditioned_attention.conversion.unsupported import unsupported_classes


def test_no_class_is_in_the_table_and_registered() -> None:
    names = [name for name, _ in registered_adapters()]
    assert {name for name in names if names.count(name) > 1}.isdisjoint(unsupported_classes())


def test_every_class_has_a_reason() -> None:
    assert all(entry.reason.strip() for entry in unsupported_classes().values())


def test_reading_the_table_imports_no_library() -> None:
    script = (
        "import sys; from preconditioned_attention.conversion.unsupported import unsupported_classes; "
        "names = unsupported_classes(); "
        "print({name.partition('.')[0] for name in names} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
