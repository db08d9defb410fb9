"""A saved model from its folder: the class that its config names, with its weights."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import TYPE_CHECKING

from attnkit.errors import ConfigError, UnsupportedError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn


def open_folder(folder: Path) -> nn.Module | None:
    """Open what ``save_pretrained`` wrote; no code of the folder is run.

    Returns:
        The model in eval mode, in the dtype it was saved in; None for another kind of folder.

    Raises:
        ConfigError: The config or the weights cannot be read.
        UnsupportedError: transformers is not installed.
    """
    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if not isinstance(config, dict) or "model_type" not in config:
        return None
    if find_spec("transformers") is None:
        raise UnsupportedError(
            f"{folder}: needs the package 'transformers', which is not installed: "
            "pip install 'attnkit[transformers]'"
        )
    import transformers

    names = config.get("architectures") or ["AutoModel"]
    kind = getattr(transformers, names[0], None)
    if kind is None:
        raise ConfigError(
            f"{path}: architectures names {names[0]!r}, which transformers "
            f"{transformers.__version__} does not have"
        )
    try:
        model: nn.Module = kind.from_pretrained(folder, local_files_only=True, dtype="auto")
    except Exception as error:  # a damaged file may raise anything
        raise ConfigError(f"{folder}: transformers cannot load it: {error}") from error
    return model.eval()
