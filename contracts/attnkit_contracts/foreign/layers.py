"""Makes a variant of any layer, (B, L, D) to (B, L, D): torch's, a model's, a new idea's.

    variant = adapt_layer(
        "torch.nn:MultiheadAttention",
        construct={"embed_dim": 32, "num_heads": 4, "batch_first": True},
        promises="bidirectional, padding, gradients, deterministic, float32",
        x_arguments=("query", "key", "value"),
        padding="hidden",
        padding_argument="key_padding_mask",
    )
    attnkit_contracts.check(variant)

Nobody here knows what such a layer computes, unless ``definition=`` says it. Without one it is
judged by what must hold between its calls, by its own float64, and by what becomes of it when it is
saved, copied and moved. As with `attnkit_contracts.adapt`, what is declared is how the layer is
called, and what has no declared name cannot be passed and must not be promised. A state cannot be
passed at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field, create_model

from attnkit.errors import ArgumentError
from attnkit.interface import LayerConfig, Variant
from attnkit_contracts.foreign import doors
from attnkit_contracts.foreign.conventions import LayerConvention

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import nn


@doors.takes_fields_of(LayerConvention)
def adapt_layer(factory: str | Callable[..., nn.Module], convention: LayerConvention) -> Variant:
    """Return a variant of family ``mixer`` whose layer is one that nobody here wrote.

    It is made by ``factory``, ``"package.module:Class"`` or a callable. Keywords are the fields of
    `attnkit_contracts.foreign.conventions.LayerConvention`.

    Raises:
        ArgumentError: The declaration contradicts itself, or the name is taken.
    """
    target = doors.load_target(factory)
    return Variant(
        name=doors.free_name(convention.name, target),
        family="mixer",
        summary=doors.summary(target),
        source="a layer given to attnkit_contracts.adapt_layer",
        relation="different",
        promises=convention.claims,
        config=_config(convention),
        layer_definition=convention.definition,
        layer=Recipe(target, convention, doors.source("adapt_layer", factory, convention)),
    )


@dataclass(frozen=True, eq=False)
class Recipe:
    """Makes a foreign layer, where a variant of our own has the class of its layer.

    Its ``source`` is Python that makes the variant again; None where nothing does.
    """

    factory: Callable[..., nn.Module]
    convention: LayerConvention
    source: str | None

    def __call__(
        self,
        config: LayerConfig,
        *,
        variant: Variant,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> nn.Module:
        """Make the layer, in a dtype, as libraries do: with that dtype for torch's default.

        Raises:
            ArgumentError: What was made is no module.
        """
        import torch

        from attnkit_contracts.foreign.layer_calls import ForeignLayer

        given, before = dict(self.convention.made_with or {}), torch.get_default_dtype()
        dropout_p = getattr(config, "dropout_p", 0.0)
        if dropout_p and self.convention.dropout_argument:
            given[self.convention.dropout_argument] = dropout_p
        torch.set_default_dtype(dtype or before)
        try:
            module = self.factory(**given)
        finally:
            torch.set_default_dtype(before)
        if not isinstance(module, torch.nn.Module):
            raise ArgumentError(
                f"{doors.plain_name(self.factory)} must make a torch.nn.Module, "
                f"got {type(module).__name__}"
            )
        return ForeignLayer(module, self.convention).to(device, dtype)


def is_foreign(variant: Variant) -> bool:
    """Return whether a variant's layer was given to `adapt_layer`."""
    return isinstance(variant.layer, Recipe)


def _config(convention: LayerConvention) -> type[LayerConfig]:
    width = convention.width
    fields: dict[str, Any] = {
        "embed_dim": (int, Field(default=width, ge=width, le=width, description="D, as declared"))
    }
    if convention.dropout_argument is not None:
        fields["dropout_p"] = (
            float,
            Field(default=0.0, ge=0, lt=1, description="share dropped in training"),
        )
    made: type[LayerConfig] = create_model("ForeignConfig", __base__=LayerConfig, **fields)
    return made
