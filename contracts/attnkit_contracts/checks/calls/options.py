"""S10, continued: the options of layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attnkit
from attnkit import precision
from attnkit.errors import AttnkitError, ConfigError, UnsupportedError
from attnkit.masks.constructors import Sizes
from attnkit_contracts.catalogue import BrokenError, Measured, layer_check
from attnkit_contracts.checks.calls.refusal import refusing
from attnkit_contracts.inputs.calls import Call
from attnkit_contracts.judging import units
from attnkit_contracts.judging.outputs import exactly, same_bits, worst
from attnkit_contracts.subjects.layers import build

if TYPE_CHECKING:
    from torch import Tensor

    from attnkit_contracts.subjects.layers import LayerSubject

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


@layer_check(
    "S10.layer_options",
    "An option of a layer changes the output if it is promised, by a promise or by a field of its "
    "own, and raises if it is not.",
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


@layer_check(
    "S10.unknown_option",
    "A field that the layer's configuration does not have, and a value of a wrong type, raise "
    "ConfigError.",
    dtypes=("float32",),
    cases=lambda _: [{"option": "no_such_option"}, {"option": "embed_dim"}],
    plugins_only=True,
)
def unknown_option(subject: LayerSubject, option: str) -> Measured:
    """Build the layer with it."""
    with refusing(f"{option}='wide'", option, ConfigError):
        build(subject.target, subject.dtype, **{option: "wide"})
    return exactly(0, "accepted options")


@layer_check(
    "S10.weights",
    "need_weights=True is refused by name unless weights are promised. Then they come last, "
    "(B, L, S) or (B, H, L, S): 0 at hidden keys, not negative, and rows sum to 1; those of one "
    "head of softmax attention explain the output, y_i = sum_j w_ij F(x_j) of tokens j alone.",
    families=("softmax",),
    verdict="R",
)
def weights(subject: LayerSubject) -> Measured:
    """Ask for the weights, with the plainest mask."""
    call = subject.draw("S10 weights", length=LENGTH)
    try:
        given = subject.layer(call.tensors["x"], mask=call.mask, need_weights=True)
    except (TypeError, AttnkitError) as error:
        if subject.promises.weights:
            raise BrokenError(f"weights are promised, and refused: {error}") from error
        if "need_weights" not in str(error):
            raise BrokenError(f"need_weights is refused without its name: {error}") from error
        return exactly(0, "accepted arguments")
    if not subject.promises.weights:
        raise BrokenError("weights are not promised, and need_weights=True is accepted in silence")
    y, found = given[0].detach(), given[-1].detach()
    same_bits(subject(call).detach(), y, "the output beside its weights")
    if found.dim() not in (3, 4) or found.shape[-2:] != (LENGTH, LENGTH):
        raise BrokenError(f"weights must be (B, L, S) or (B, H, L, S), got {tuple(found.shape)}")
    wrong = int(((found != 0) & ~_seen(subject, call)).sum() + (found < 0).sum())
    if wrong:
        raise BrokenError(f"{wrong} weights are negative, or of hidden keys", value=wrong)
    # a sum of S numbers, and a division
    unit = (LENGTH + 1) * precision.roundoff(found.dtype)
    off = float((found.double().sum(-1) - 1).abs().max())
    sums = Measured(off / unit, 1.0, f"of {unit:.3g}", "row sums")
    if found.dim() == 4 or subject.target.variant.relation != "exact":
        return sums
    return worst([sums, _explained(subject, call, y, found)])


def _seen(subject: LayerSubject, call: Call) -> Tensor:
    """Return which keys are seen, (B or 1, 1, L, S); of one head, (B or 1, L, S)."""
    batch, length, _ = call.tensors["x"].shape
    own = attnkit.causal() if getattr(subject.config, "is_causal", False) else attnkit.full()
    seen = (own & call.mask).to_bool(Sizes(batch, 1, length, length), call.tensors["x"].device)
    return seen.reshape(-1, length, length) if subject.promises.heads == "one" else seen


def _explained(subject: LayerSubject, call: Call, y: Tensor, weights: Tensor) -> Measured:
    x = call.tensors["x"]
    count = x.shape[0] * x.shape[1]
    alone = Call({"x": x.reshape(count, 1, -1)}, subject.mask(Sizes(count, 1, 1, 1)))
    limit, single = subject.bound(call), subject.bound(alone)
    own = subject(alone).detach().double().reshape(x.shape)
    mixed = weights.double() @ own
    # both are off by as much as a layer's output may be
    unit = limit.unit + weights.double() @ single.unit.expand(count, 1, -1).reshape(x.shape)
    value, place = units.error(y, mixed, unit)
    return Measured(value, limit.gate, limit.name, f"the output, as weights say {place}")
