"""Models of timm and transformers by name, with random weights or on the meta device."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from .._files import read_json

MOST_LAYERS = 10_000


def build_without_weights(name: str) -> nn.Module:
    """The architecture ``name`` on the meta device, without memory for weights: enough to plan a conversion.

    Raises:
        ValueError, ImportError: as :func:`build_model`.
    """
    with torch.device("meta"):
        return build_model(name)


def build_model(name: str) -> nn.Module:
    """The architecture ``name`` with random weights from torch's global generator; nothing is downloaded.

    Args:
        name: a model of timm (``"vit_tiny_patch16_224"``), a model type of transformers (``"gpt2"``, with its default
            configuration), or a folder with a transformers ``config.json``; that of a converted model gives the plain
            architecture.

    Raises:
        ValueError: neither library that is installed has a model of that name; the message lists similar ones. Or the
            folder's config.json describes no model.
        ImportError: neither library is installed.
    """
    libraries = [library for library in ("timm", "transformers") if find_spec(library)]
    if not libraries:
        raise ImportError(
            "models come from timm or transformers; install one: pip install 'preconditioned-attention[all]'"
        )
    model = (_of_timm(name) if "timm" in libraries else None) or (
        _of_transformers(name) if "transformers" in libraries else None
    )
    if model is None:
        similar = _similar(name, libraries)
        hint = f"; similar ones: {', '.join(similar)}" if similar else ""
        raise ValueError(f"no model named {name!r} in {' or '.join(libraries)}, and no folder with config.json{hint}")
    return model


def _of_timm(name: str) -> nn.Module | None:
    import timm

    if not timm.is_model(name):
        return None
    model: nn.Module = timm.create_model(name, pretrained=False)
    return model


def _of_transformers(name: str) -> nn.Module | None:
    from transformers import AutoConfig, AutoModel
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    from .saving.standalone import preconditioned_folder

    path = Path(name) / "config.json"
    if "\0" not in name and path.is_file():
        read_json(path)  # whose messages say more than those of transformers
        try:
            content, _ = preconditioned_folder.read_config(name, {"local_files_only": True})
            config, _ = preconditioned_folder.build_config(AutoConfig, content, name, {"local_files_only": True})
            _check_layers(config)
            return AutoModel.from_config(config)
        except ImportError:
            raise
        except Exception as error:  # of many kinds: transformers checks some sizes, and leaves others to torch
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{path} describes no model that transformers can make: {reason}") from error
    if name not in CONFIG_MAPPING_NAMES:
        return None
    model: nn.Module = AutoModel.from_config(AutoConfig.for_model(name))
    return model


def _check_layers(config: object) -> None:
    """Raise if the number of layers is one that nobody can mean: making them would take hours."""
    layers = getattr(config, "num_hidden_layers", 0)
    if isinstance(layers, int) and layers > MOST_LAYERS:
        raise ValueError(f"num_hidden_layers must be at most {MOST_LAYERS}; got {layers}")


def _similar(name: str, libraries: list[str]) -> list[str]:
    from difflib import get_close_matches

    names: list[str] = []
    if "timm" in libraries:
        import timm

        names += timm.list_models()
    if "transformers" in libraries:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

        names += CONFIG_MAPPING_NAMES
    return get_close_matches(name, names, n=5)
