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

Nobody here has a definition of what such a layer computes. It is judged without one: by what must
hold between its calls, by its own float64, and by what becomes of it when it is saved, copied and
moved. As with `attnkit_contracts.adapt`, what is declared is how the layer is called, and what
has no declared name cannot be passed and must not be promised. A state cannot be passed at all.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import Field, create_model

from attnkit.errors import ArgumentError
from attnkit.interface import LayerConfig, Variant
from attnkit.promises import Promises
from attnkit_contracts.foreign import functions as foreign
from attnkit_contracts.foreign.functions import free_name, load_target, parse, plain_name, written

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import torch
    from torch import nn

    from attnkit_contracts.foreign.layer_calls import Convention

Layout = Literal["BLD", "LBD"]
HiddenAs = Literal["bool", "hidden", "additive", "additive_min", "integer"]
MaskShape = Literal["BHLS", "BLS", "LS"]

NAMES: Mapping[str, str] = {
    "x": "x_arguments",
    "padding": "padding_argument",
    "mask": "mask_argument",
    "causal": "causal_argument",
    "dropout": "dropout_argument",
}
"""What an argument of a layer is about, and the option of `adapt_layer` that names it."""

CARRIED = frozenset(
    {"causal", "bidirectional", "masks", "dropout", "gradients", "dtypes", "devices",
     "deterministic", "compile", "stops_nan", "memory", "time"}
)  # fmt: skip
"""The promises that a foreign layer can make."""

PER_SAMPLE = frozenset({"padding", "documents", "prefix"})
"""Mask parts that differ from sample to sample."""


def adapt_layer(
    factory: str | Callable[..., nn.Module],
    *,
    promises: Promises | str | Iterable[str],
    construct: Mapping[str, Any] | None = None,
    name: str | None = None,
    width: int = 32,
    layout: Layout = "BLD",
    x_arguments: tuple[str, ...] = (),
    fixed: Mapping[str, Any] | None = None,
    output: str | None = None,
    padding: HiddenAs = "bool",
    padding_argument: str | None = None,
    mask: HiddenAs = "bool",
    mask_argument: str | None = None,
    mask_shape: MaskShape = "BHLS",
    mask_heads: int = 1,
    causal_argument: str | None = None,
    dropout_argument: str | None = None,
) -> Variant:
    """Return a variant of family ``mixer`` whose layer is one that nobody here wrote.

    A layer that promises ``causal`` and not ``bidirectional`` is causal without being told; a mask
    that is written for it then has causal in it.

    Args:
        factory: ``"package.module:Class"``, or a callable, that makes the ``torch.nn.Module``.
        promises: What it claims, as `adapt` takes it; of the promises, those in `CARRIED`.
        construct: Arguments that it is made with.
        name: Of the variant; None for the factory's.
        width: D of its input and output.
        layout: Of both: ``BLD``, or ``LBD`` with the tokens first.
        x_arguments: Names that all take the input, query, key and value say; none to pass it once,
            by position.
        fixed: Further arguments of its forward, the same for every call.
        output: Name of the output among what it returns; None for the tensor itself, or the first
            of a tuple.
        padding: What its ``padding_argument``, (B, L), is given: ``bool`` (True is a real token),
            ``hidden`` (True is padding), ``integer`` (1 is real), ``additive`` (0 or -inf) or
            ``additive_min`` (0 or the lowest finite number).
        padding_argument: Name of its argument for padding; None to write padding into the mask.
        mask: What its ``mask_argument`` is given; as ``padding``, for keys.
        mask_argument: Name of its argument for all other masks.
        mask_shape: ``BHLS`` for (B, 1 or H, L, L), ``BLS`` for (B * ``mask_heads``, L, L), ``LS``
            for (L, L), which says nothing that differs from sample to sample.
        mask_heads: H of its mask.
        causal_argument: Name of its flag for causal; set where no other mask is written.
        dropout_argument: Name of the argument it is *made* with for dropout.

    Raises:
        ArgumentError: The declaration contradicts itself, or the name is taken.
    """
    # every declaration, by name
    declared = {key: value for key, value in locals().items() if key != "factory"}
    given = parse(promises)
    target = load_target(factory)
    _check_values(declared)
    _check_promises(given, declared)
    return Variant(
        name=free_name(name, target),
        family="mixer",
        summary=f"{getattr(target, '__module__', '')}.{plain_name(target)}, as declared.",
        source="a layer given to attnkit_contracts.adapt_layer",
        relation="different",
        promises=given,
        config=_config(width, with_dropout=dropout_argument is not None),
        layer=Recipe(
            factory=target,
            construct=dict(construct or {}),
            dropout_argument=dropout_argument,
            convention=_convention(given, declared),
            source=written(adapt_layer, factory, declared),
        ),
    )


@dataclass(frozen=True, eq=False)
class Recipe:
    """Makes a foreign layer, where a variant of our own has the class of its layer.

    Attributes:
        factory: Makes the module.
        construct: What it is made with.
        dropout_argument: Its name for dropout among those.
        convention: How the module is called.
        source: Python that makes the variant again; None where nothing does.
    """

    factory: Callable[..., nn.Module]
    construct: Mapping[str, Any]
    dropout_argument: str | None
    convention: Convention
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

        given, before = dict(self.construct), torch.get_default_dtype()
        dropout_p = getattr(config, "dropout_p", 0.0)
        if dropout_p and self.dropout_argument:
            given[self.dropout_argument] = dropout_p
        torch.set_default_dtype(dtype or before)
        try:
            module = self.factory(**given)
        finally:
            torch.set_default_dtype(before)
        if not isinstance(module, torch.nn.Module):
            raise ArgumentError(
                f"{plain_name(self.factory)} must make a torch.nn.Module, "
                f"got {type(module).__name__}"
            )
        return ForeignLayer(module, config.embed_dim, self.convention).to(device, dtype)


def is_foreign(variant: Variant) -> bool:
    """Return whether a variant's layer was given to `adapt_layer`."""
    return isinstance(variant.layer, Recipe)


def named_arguments(given: Iterable[str]) -> dict[str, Any]:
    """Return options of `adapt_layer` from ``mask=attn_mask`` and ``x=query,key,value``.

    Raises:
        ArgumentError: Not such a pair, or there is no such argument.
    """
    found: dict[str, Any] = dict(foreign.named_arguments(given, NAMES))
    if "x_arguments" in found:
        found["x_arguments"] = tuple(found["x_arguments"].split(","))
    return found


def values(given: Iterable[str]) -> dict[str, Any]:
    """Return arguments from ``embed_dim=32``, with values as Python writes them, or as text.

    Raises:
        ArgumentError: Not such a pair.
    """
    found: dict[str, Any] = {}
    for pair in given:
        name, _, value = pair.partition("=")
        if not name.isidentifier() or not value:
            raise ArgumentError(f"a value is told as NAME=VALUE, got {pair!r}")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    return found


def _config(width: int, *, with_dropout: bool) -> type[LayerConfig]:
    fields: dict[str, Any] = {
        "embed_dim": (int, Field(default=width, ge=width, le=width, description="D, as declared"))
    }
    if with_dropout:
        fields["dropout_p"] = (
            float,
            Field(default=0.0, ge=0, lt=1, description="share dropped in training"),
        )
    made: type[LayerConfig] = create_model("ForeignConfig", __base__=LayerConfig, **fields)
    return made


def _convention(promises: Promises, declared: Mapping[str, Any]) -> Convention:
    # torch is imported here: naming a variant's layer must not
    from attnkit_contracts.foreign.layer_calls import Convention

    names = set(Convention.__dataclass_fields__) - {"promises", "fixed"}
    fixed = dict(declared["fixed"] or {})
    told = {each: declared[each] for each in names}
    return Convention(promises=promises, fixed=fixed, **told)


def _check_values(declared: Mapping[str, Any]) -> None:
    for what, allowed in (
        ("layout", get_args(Layout)),
        ("padding", get_args(HiddenAs)),
        ("mask", get_args(HiddenAs)),
        ("mask_shape", get_args(MaskShape)),
    ):
        if declared[what] not in allowed:
            raise ArgumentError(
                f"{what} must be one of {', '.join(allowed)}, got {declared[what]!r}"
            )
    for what in ("width", "mask_heads"):
        if not isinstance(declared[what], int) or declared[what] < 1:
            raise ArgumentError(f"{what} must be a positive int, got {declared[what]!r}")


def _check_promises(promises: Promises, declared: Mapping[str, Any]) -> None:
    """Refuse a promise that nothing declared can carry."""
    for what, value in promises:
        if what not in CARRIED and value != Promises.model_fields[what].default:
            raise ArgumentError(
                f"{what} is promised, but adapt_layer passes a layer its input, masks and flags "
                "alone; leave the promise out"
            )
    if promises.dropout and declared["dropout_argument"] is None:
        raise ArgumentError(
            "dropout is promised, but cannot be set: name its argument with dropout_argument"
        )
    if not promises.causal and not promises.bidirectional:
        raise ArgumentError("promises must have causal or bidirectional, or both")
    masked = declared["mask_argument"] is not None
    told = masked or declared["causal_argument"] is not None
    if promises.causal and promises.bidirectional and not told:
        raise ArgumentError(
            "causal and bidirectional are promised, but nothing says which: name its argument "
            "with causal_argument or mask_argument"
        )
    _check_masks(set(promises.masks), declared, masked=masked)


def _check_masks(parts: set[str], declared: Mapping[str, Any], *, masked: bool) -> None:
    through_mask = parts - ({"padding"} if declared["padding_argument"] else set())
    if through_mask and not masked:
        raise ArgumentError(
            f"the mask parts {', '.join(sorted(through_mask))} are promised, but cannot be "
            "passed: name its argument with mask_argument, or with padding_argument for padding"
        )
    varying = through_mask & PER_SAMPLE
    if varying and declared["mask_shape"] == "LS":
        raise ArgumentError(
            f"the mask parts {', '.join(sorted(varying))} are promised, but a mask (L, L) is the "
            "same for every sample; declare another mask_shape"
        )
