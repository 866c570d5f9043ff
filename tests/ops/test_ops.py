import subprocess
import sys

LISTS = """
import importlib, pkgutil, torch
import preconditioned_attention.ops as ops

def operators():
    names = torch._C._dispatch_get_all_op_names()
    return sorted(name for name in names if name.startswith("preconditioned_attention::"))

print(operators())
for module in pkgutil.walk_packages(ops.__path__, ops.__name__ + "."):
    importlib.import_module(module.name)
print(operators())
"""


def test_importing_the_package_registers_every_operator() -> None:
    """Programs of torch.export that contain one need no other import where they run."""
    out = subprocess.run([sys.executable, "-c", LISTS], capture_output=True, text=True, check=True).stdout
    registered, all_of_them = out.splitlines()
    assert registered == all_of_them
    assert "varlen_flash" in registered
