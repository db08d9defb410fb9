"""S10, continued: the options of layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attnkit.errors import ConfigError, UnsupportedError
from attnkit_contracts.catalogue import BrokenError, Measured, check
from attnkit_contracts.judging import exactly
from attnkit_contracts.layers import build

if TYPE_CHECKING:
    from attnkit_contracts.layers import LayerSubject

LENGTH = 20

LAYER_OPTIONS: dict[str, tuple[str, Any]] = {
    "num_kv_heads": ("gqa", 1),
    "value_head_dim": ("value_width", 12),
    "scale": ("scale", 1.5),
    "softcap": ("softcap", 0.05),
    "sinks": ("sinks", True),
    "dropout_p": ("dropout", 0.5),
    "rotary_base": ("", 100.0),
    "projection_bias": ("", True),
}
"""Fields of softmax layers: the promise that each belongs to, and a value to try.

A field that belongs to none is a promise itself.
"""


@check(
    "S10.layer_options",
    "An option of a layer changes the output if it is promised, by a promise or by a field of its "
    "own, and raises if it is not.",
    levels=("layer",),
    families=("softmax",),
    cases=lambda _: [{"option": option} for option in LAYER_OPTIONS],
)
def layer_options(subject: LayerSubject, option: str) -> Measured:
    """Build the layer with the option, and call it in training."""
    feature, value = LAYER_OPTIONS[option]
    has_field = option in type(subject.config).model_fields
    promised = getattr(subject.promises, feature) if feature else has_field
    call = subject.draw("S10", length=LENGTH)
    try:
        layer = build(subject.target, subject.dtype, **{option: value}).train()
        out = layer(call.tensors["x"], mask=call.mask)
    except (UnsupportedError, ConfigError) as error:
        if promised and has_field:
            raise BrokenError(
                f"{feature or option} is promised, {option}={value} is refused: {error}"
            ) from error
        return exactly(0, "ignored options")
    if not promised:
        raise BrokenError(
            f"{feature or option} is not promised, and {option}={value} is accepted in silence"
        )
    plain = build(subject.target, subject.dtype).train()
    known = plain.state_dict()
    changed = {n: t.shape for n, t in layer.state_dict().items()} != {
        n: t.shape for n, t in known.items()
    }
    if not changed and bool((out == plain(call.tensors["x"], mask=call.mask)).all()):
        raise BrokenError(f"{option}={value} is promised, and ignored: the output is the same")
    return exactly(0, "ignored options")


@check(
    "S10.unknown_option",
    "A field that the layer's configuration does not have, and a value of a wrong type, raise "
    "ConfigError.",
    levels=("layer",),
    dtypes=("float32",),
    cases=lambda _: [{"option": "no_such_option"}, {"option": "embed_dim"}],
    plugins_only=True,
)
def unknown_option(subject: LayerSubject, option: str) -> Measured:
    """Build the layer with it."""
    try:
        build(subject.target, subject.dtype, **{option: "wide"})
    except ConfigError as error:
        if option not in str(error):
            raise BrokenError(f"{option}='wide' is refused without its name: {error}") from error
        return exactly(0, "accepted options")
    raise BrokenError(f"{option}='wide' is accepted in silence")
