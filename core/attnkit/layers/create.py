"""From a name and options to a layer: `create`."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from attnkit.choice.decision import AUTO, implementations_of, resolve
from attnkit.errors import ArgumentError, ConfigError
from attnkit.interface import Layer, LayerConfig, Variant, load

if TYPE_CHECKING:
    import torch
    from torch import nn

    class LayerModule(Layer, nn.Module):
        """What `create` returns, to a type checker."""

    Option = int | float | bool | str | None | tuple[object, ...]


def create(
    name: Variant | str,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **options: Option,
) -> LayerModule:
    """Build a variant's layer, (B, L, D) in, (B, L, D) out; see `attnkit.interface.Layer`.

    Args:
        name: The variant, or its name.
        device: Of the parameters; None for torch's default.
        dtype: Of the parameters; None for torch's default.
        options: Fields of the variant's ``config``.

    Raises:
        RegistryError: No working variant has this name.
        ConfigError: An option is unknown, missing or out of range; every one is named.
    """
    if name == AUTO:
        raise ArgumentError("create needs the name of one variant, got 'auto'")
    (variant,) = resolve(name)
    config = configure(variant, options)
    layer: LayerModule = load(variant.layer)(config, variant=variant, device=device, dtype=dtype)
    return layer


def configure(variant: Variant, options: dict[str, Any]) -> LayerConfig:
    """Return a variant's configuration with these fields.

    Raises:
        ConfigError: An option is unknown, missing or out of range; every one is named.
    """
    try:
        config = variant.config(**options)
    except ValidationError as error:
        told = "; ".join(_told(variant, problem) for problem in error.errors())
        raise ConfigError(f"variant {variant.name!r}: {told}") from None
    names = [AUTO, *(each.name for each in implementations_of(variant))]
    if config.implementation not in names:
        raise ConfigError(
            f"variant {variant.name!r}: implementation must be one of {', '.join(names)}, "
            f"got {config.implementation!r}"
        )
    return config


def _told(variant: Variant, problem: Any) -> str:
    fields = variant.config.model_fields
    name = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        nearest = difflib.get_close_matches(name, fields, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        return f"no option {name!r}{hint} (options: {', '.join(fields)})"
    if problem["type"] == "missing":
        return f"option {name!r} is missing ({fields[name].description})"
    message = problem["msg"].removeprefix("Value error, ")
    if not name:
        return str(message)
    return f"{name}: {message[0].lower()}{message[1:]}, got {problem['input']!r}"
