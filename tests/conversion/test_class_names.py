import pytest
from torch import nn

from preconditioned_attention.conversion.class_names import class_name, existing_class, nearest


def test_a_name_is_found_wherever_the_class_was_defined() -> None:
    class Local(nn.Module): ...

    assert existing_class(class_name(Local)) is Local
    assert existing_class("torch.nn.MultiheadAttention") is nn.MultiheadAttention
    assert existing_class("torch.nn.modules.activation.MultiheadAttention") is nn.MultiheadAttention


def test_the_module_of_a_name_is_imported(tmp_path, monkeypatch) -> None:
    (tmp_path / "named_library").mkdir()
    (tmp_path / "named_library" / "__init__.py").write_text("")
    (tmp_path / "named_library" / "parts.py").write_text(
        "import torch\nclass Outer:\n    class Inner(torch.nn.Module): ...\n"
    )
    (tmp_path / "named_library" / "lazy.py").write_text(
        "def __getattr__(name):\n    import a_package_that_is_not_there\n"
    )
    (tmp_path / "named_library" / "broken.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert existing_class("named_library.parts.Outer.Inner").__qualname__ == "Outer.Inner"
    with pytest.raises(ValueError, match=r"Outer'> has no 'Iner'; .*did you mean 'named_library.parts.Outer.Inner'\?"):
        existing_class("named_library.parts.Outer.Iner")
    with pytest.raises(ValueError, match="module named_library has no 'part'"):
        existing_class("named_library.part.Outer.Inner")
    with pytest.raises(ValueError, match=r"importing named_library\.broken fails: No module named 'a_package_that"):
        existing_class("named_library.broken.Attention")
    with pytest.raises(ValueError, match="importing Attention fails: No module named 'a_package_that"):
        existing_class("named_library.lazy.Attention")


@pytest.mark.parametrize(
    ("name", "reason"),
    {
        "MultiheadAttention": "a name is 'package.module.Class'",
        "": "a name is",
        "torch..nn": "a name is",
        "a_package_that_is_not_there.Attention": "no package or module 'a_package_that_is_not_there' is installed",
        "torch.nn.modules.activation.MultiheadAtention": "has no 'MultiheadAtention'; .*did you mean 'torch.nn.modules."
        "activation.MultiheadAttention'",
        "tests.f.<locals>.Attention": "a class that is defined in a function cannot be looked up",
        "torch.nn.functional.softmax": "it names a function, not a subclass of torch.nn.Module",
        "torch.nn": "it names a module",
        "torch.Tensor": "it names a .*, not a subclass of torch.nn.Module",
    }.items(),
)
def test_what_matches_nothing_is_refused_in_one_sentence(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"no attention class is named '{name}': .*{reason}") as caught:
        existing_class(name)
    assert "\n" not in str(caught.value)
    assert "pass the class itself" in str(caught.value)


def test_nearest() -> None:
    assert nearest("head", ["heads", "proj"]) == " (did you mean 'heads'?)"
    assert nearest("zzz", ["heads", "proj"]) == ""
