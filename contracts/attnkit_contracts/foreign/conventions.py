"""How a stranger's code is called, and what it claims: all that can be declared of it.

`attnkit_contracts.adapt` takes the fields of `Convention` as keywords, `adapt_layer` those of
`LayerConvention`. An argument that has no declared name cannot be passed; what needs it must not
be promised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field, PlainValidator, field_validator, model_validator

from attnkit.errors import ArgumentError
from attnkit.frozen import Frozen
from attnkit.promises import Promises
from attnkit_contracts.foreign.claims import parse

if TYPE_CHECKING:
    from collections.abc import Iterator

Layout = Literal["BHLE", "BLHE"]
LayerLayout = Literal["BLD", "LBD"]
MaskAs = Literal["bool", "hidden", "additive", "additive_min", "none"]
HiddenAs = Literal["bool", "hidden", "additive", "additive_min", "integer"]

CARRIED = frozenset(
    {"causal", "bidirectional", "masks", "dropout", "gradients", "dtypes", "devices",
     "deterministic", "compile", "stops_nan", "memory", "time"}
)  # fmt: skip
"""The promises that a foreign layer can make."""

PER_SAMPLE = frozenset({"padding", "documents", "prefix"})
"""Mask parts that differ from sample to sample."""


def _said(promises: Promises | str | Iterable[str]) -> Promises | str:
    parse(promises)
    return promises if isinstance(promises, (Promises, str)) else ", ".join(promises)


Claims = Annotated[Promises | str | Iterable[str], PlainValidator(_said)]


class Declaration(Frozen):
    """What is declared of any code that is no plugin."""

    promises: Claims = Field(
        description="what it claims: Promises, or their names, with mask parts, forms of decay, "
        "dtypes and devices among them; without a dtype float32 is meant, without a device the CPU"
    )
    name: str | None = Field(default=None, description="of the variant; None for its own")
    fixed: Mapping[str, Any] | None = Field(
        default=None, description="further arguments, the same for every call"
    )

    @property
    def claims(self) -> Promises:
        """What it claims."""
        return parse(self.promises)

    @model_validator(mode="after")
    def _has_causality(self) -> Declaration:
        if not self.claims.causal and not self.claims.bidirectional:
            raise ArgumentError("promises must have causal or bidirectional, or both")
        return self


class SoftmaxPart(Frozen):
    """What is declared of softmax attention alone."""

    mask: MaskAs = Field(
        default="bool",
        description="what it is given for a mask: bool (True may attend), hidden (True is shut "
        "out), additive (0 or -inf, in the dtype of the query), additive_min (0 or the lowest "
        "finite number), or none at all; one without a mask and without a causal_argument that "
        "promises causal is causal by itself",
    )
    mask_argument: str | None = Field(default="attn_mask", description="its name for the mask")
    causal_argument: str | None = Field(
        default=None, description="its flag for causal; None to write causal into the mask"
    )
    causal_corner: Literal["lower_right", "upper_left"] = Field(
        default="lower_right",
        description="what the flag means for L != S; with upper_left, causal calls of L != S go "
        "through the mask",
    )
    window_argument: str | None = Field(
        default=None,
        description="its name for a window, in keys, self included; None to write windows into "
        "the mask",
    )
    gqa_argument: str | None = Field(
        default=None, description="a flag set where Hkv != H; None for a function that sees it"
    )
    bias_argument: str | None = Field(
        default=None, description="its name for a bias; an additive mask takes it otherwise"
    )
    softcap_argument: str | None = Field(default=None, description="its name for a soft cap")
    sinks_argument: str | None = Field(default=None, description="its name for sinks, (H,)")
    dropout_argument: str | None = Field(default=None, description="its name for dropout")


class RecurrencePart(Frozen):
    """What is declared of a recurrence alone."""

    decay_argument: str | None = Field(default="g", description="its name for log_decay")
    beta_argument: str | None = Field(default="beta", description="its name for beta")
    state_argument: str = Field(
        default="initial_state", description="its name for the initial state, (B, H, E, Ev)"
    )
    own_scale: Literal["none", "width"] = Field(
        default="none", description="width for one that multiplies queries by E ** -0.5 unasked"
    )
    always: tuple[Literal["beta", "state"], ...] = Field(
        default=(),
        description="what a call must bring: beta for one that cannot do without; a call that "
        "does not is refused",
    )


class Convention(RecurrencePart, SoftmaxPart, Declaration):
    """How a stranger's function is called.

    Softmax attention is called as ``function(query, key, value, **named)``; a recurrence too, and
    returns outputs and final state.
    """

    family: Literal["softmax", "recurrence"] = Field(
        default="softmax", description="softmax or recurrence"
    )
    layout: Layout = Field(default="BHLE", description="of query, key and value: BHLE or BLHE")
    output_layout: Layout | None = Field(
        default=None, description="of the output; None for that of the query"
    )
    scale_argument: str | None = Field(
        default="scale",
        description="its name for the scale; None for one that takes none; it is given in every "
        "call, so that the function's own default is not judged; but where it is the usual one and "
        "a softmax function's default is None, which has to mean that",
    )

    @property
    def is_recurrence(self) -> bool:
        """Whether it keeps a state."""
        return self.family == "recurrence"

    @property
    def claims(self) -> Promises:
        """What it claims; a recurrence is causal and has a state."""
        more = {"state": True, "causal": True} if self.is_recurrence else {}
        return parse(self.promises).model_copy(update=more)

    def own_names(self) -> Iterator[tuple[str, str]]:
        """Yield the options that name an argument, and its name, but for the default ones."""
        for option, field in type(self).model_fields.items():
            name = getattr(self, option)
            if option.endswith("_argument") and name not in (None, field.default):
                yield option, name

    @field_validator("family", mode="before")
    @classmethod
    def _is_no_layer(cls, family: object) -> object:
        if family not in ("softmax", "recurrence"):
            raise ArgumentError(
                f"family must be softmax or recurrence, got {family!r}; a layer goes to adapt_layer"
            )
        return family

    @model_validator(mode="after")
    def _is_of_one_family(self) -> Convention:
        other = SoftmaxPart if self.is_recurrence else RecurrencePart
        for name, field in other.model_fields.items():
            if getattr(self, name) != field.default:
                raise ArgumentError(f"{name} is not about family {self.family}; leave it out")
        return self

    @model_validator(mode="after")
    def _can_carry_its_promises(self) -> Convention:
        claims = self.claims
        softmax, added = not self.is_recurrence, self.mask.startswith("additive")
        carried = (
            ("softcap", claims.softcap, "softcap_argument"),
            ("sinks", claims.sinks, "sinks_argument"),
            ("dropout", claims.dropout, "dropout_argument"),
            ("scale", claims.scale and softmax, "scale_argument"),
            ("bias", claims.bias and not added, "bias_argument"),
            ("beta", claims.beta, "beta_argument"),
            ("log_decay", bool({"head", "channel"} & set(claims.decay)), "decay_argument"),
        )
        for what, promised, option in carried:
            if promised and getattr(self, option) is None:
                raise ArgumentError(
                    f"{what} is promised, but cannot be passed: name its argument with {option}"
                )
        through_mask = {*claims.masks} - ({"window"} if self.window_argument else set())
        if self.mask == "none" and softmax:
            _refuse(through_mask, "mask='none' passes no mask")
        if self.mask_argument is None:
            _refuse(through_mask, "cannot be passed: name its argument with mask_argument")
        return self


class LayerConvention(Declaration):
    """How a stranger's layer is made and called.

    One that promises ``causal`` and not ``bidirectional`` is causal without being told; a mask
    that is written for it then has causal in it.
    """

    model_config = ConfigDict(populate_by_name=True)

    # a model has a method of that name
    made_with: Mapping[str, Any] | None = Field(
        default=None, alias="construct", description="arguments that it is made with"
    )
    width: int = Field(default=32, description="D of its input and output", gt=0, strict=True)
    layout: LayerLayout = Field(
        default="BLD", description="of both: BLD, or LBD with the tokens first"
    )
    x_arguments: tuple[str, ...] = Field(
        default=(),
        description="names that all take the input, query, key and value say; none to pass it "
        "once, by position",
    )
    output: str | None = Field(
        default=None,
        description="name of the output among what it returns; None for the tensor itself, or "
        "the first of a tuple",
    )
    padding: HiddenAs = Field(
        default="bool",
        description="what it is given for padding, (B, L): bool (True is a real token), hidden "
        "(True is padding), integer (1 is real), additive (0 or -inf) or additive_min (0 or the "
        "lowest finite number)",
    )
    padding_argument: str | None = Field(
        default=None, description="its name for padding; None to write padding into the mask"
    )
    mask: HiddenAs = Field(
        default="bool", description="what it is given for a mask; as padding, for keys"
    )
    mask_argument: str | None = Field(
        default=None, description="its name for the mask of all other parts"
    )
    mask_shape: Literal["BHLS", "BLS", "LS"] = Field(
        default="BHLS",
        description="BHLS for (B, 1 or H, L, L), BLS for (B * mask_heads, L, L), LS for (L, L), "
        "which says nothing that differs from sample to sample",
    )
    mask_heads: int = Field(default=1, description="H of its mask", gt=0, strict=True)
    causal_argument: str | None = Field(
        default=None, description="its flag for causal; set where no other mask is written"
    )
    dropout_argument: str | None = Field(
        default=None, description="the argument that it is made with for dropout"
    )
    definition: str | Callable[..., Any] | None = Field(
        default=None,
        description="the whole layer as a plain function in float64, a "
        "attnkit.interface.LayerDefinition, by which its mathematics is judged; None for nobody's",
    )

    @model_validator(mode="after")
    def _can_carry_its_promises(self) -> LayerConvention:
        claims = self.claims
        for what, value in claims:
            if what not in CARRIED and value != Promises.model_fields[what].default:
                raise ArgumentError(
                    f"{what} is promised, but adapt_layer passes a layer its input, masks and "
                    "flags alone; leave the promise out"
                )
        if claims.dropout and self.dropout_argument is None:
            raise ArgumentError(
                "dropout is promised, but cannot be set: name its argument with dropout_argument"
            )
        told = self.mask_argument is not None or self.causal_argument is not None
        if claims.causal and claims.bidirectional and not told:
            raise ArgumentError(
                "causal and bidirectional are promised, but nothing says which: name its argument "
                "with causal_argument or mask_argument"
            )
        return self

    @model_validator(mode="after")
    def _can_write_its_masks(self) -> LayerConvention:
        through_mask = {*self.claims.masks} - ({"padding"} if self.padding_argument else set())
        if self.mask_argument is None:
            _refuse(
                through_mask,
                "cannot be passed: name its argument with mask_argument, or with "
                "padding_argument for padding",
            )
        if self.mask_shape == "LS":
            _refuse(
                through_mask & PER_SAMPLE,
                "a mask (L, L) is the same for every sample; declare another mask_shape",
            )
        return self


def _refuse(parts: Iterable[str], why: str) -> None:
    if parts:
        raise ArgumentError(f"the mask parts {', '.join(sorted(parts))} are promised, but {why}")
