"""Named mistakes of attention that is no softmax: its own reference, given something else.

Of the mistakes of softmax attention, those that are about what the maths is given: which keys are
seen, which head reads which, the scale, a bias. What is inside a softmax has no part in them.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import attnkit
from attnkit_contracts.definitions.mistakes import softmax
from attnkit_contracts.definitions.mistakes.softmax import RIGHT, Steps, scale_of
from attnkit_contracts.inputs import cuts

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from attnkit_contracts.definitions.mistakes.mistake import Mistake
    from attnkit_contracts.inputs.calls import Call


def altered(call: Call, steps: Steps) -> Call:
    """Return the call of which the right maths makes what mistaken steps make of this one."""
    call = steps.given(call)
    sizes, key = cuts.sizes_of(call), call.tensors["key"]
    if steps.spread is not RIGHT.spread and key.shape[1]:
        shared = sizes.heads // key.shape[1]
        held = {name: steps.spread(call.tensors[name], shared) for name in ("key", "value")}
        call = call.given(**held)
    if steps.scale is not RIGHT.scale:
        call = call.saying(scale=steps.scale(call))
    if steps.visible is not RIGHT.visible:
        call = call.masked(attnkit.dense(steps.visible(call.mask, sizes, key.device)))
    return call


def run(call: Call, attend: Callable[..., Tensor]) -> Tensor:
    """Give a call to an implementation of the family."""
    tensors, extras = call.tensors, call.extras
    bias = tensors.get("bias")
    return attend(
        *(tensors[name] for name in ("query", "key", "value")),
        mask=call.mask,
        bias=None if bias is None else bias[(None,) * (4 - bias.dim())],
        scale=scale_of(call),
        softcap=extras.get("softcap"),
        sinks=tensors.get("sinks"),
        dropout_p=0.0,
    )


def _given(change: Callable[[Call], Call], *names: str) -> tuple[Steps, ...]:
    """Return steps that change a call which brings all of these."""

    def given(call: Call) -> Call:
        brings = all(name in call.tensors or call.extras.get(name) is not None for name in names)
        return change(call) if brings else call

    return (replace(RIGHT, given=given),)


def _scaled(call: Call, factor: float) -> dict[str, Any]:
    return {"scale": scale_of(call) * factor}


def _to_base_two(call: Call) -> Call:
    log = math.log(2)
    call = call.saying(**_scaled(call, log))
    if "bias" in call.tensors:
        call = call.given(bias=log * call.tensors["bias"])
    return call if call.extras.get("softcap") is None else _capped(call, log)


def _capped(call: Call, factor: float) -> Call:
    return call.saying(softcap=call.extras["softcap"] * factor)


def _biased(call: Call, of: Callable[[Tensor], Tensor]) -> Call:
    return call.given(bias=of(call.tensors["bias"]))


def _undone(call: Call) -> Call:
    """tanh(x / c), which is a cap of 1."""
    return call.saying(softcap=1.0, **_scaled(call, 1 / call.extras["softcap"]))


_OWN: dict[str, tuple[Steps, ...]] = {
    "base_2": _given(_to_base_two),
    "softcap_ignored": _given(lambda c: c.saying(softcap=None), "softcap"),
    "softcap_before_scale": _given(lambda c: _capped(c, scale_of(c)), "softcap"),
    "softcap_not_undone": _given(_undone, "softcap"),
    "softcap_not_divided": _given(lambda c: c.saying(**_scaled(c, c.extras["softcap"])), "softcap"),
    "bias_ignored": _given(lambda c: c.without("bias"), "bias"),
    "bias_before_scale": _given(lambda c: _biased(c, lambda bias: scale_of(c) * bias), "bias"),
    "bias_subtracted": _given(lambda c: _biased(c, lambda bias: -bias), "bias"),
    "bias_first_head": _given(
        lambda c: _biased(c, lambda b: b[..., :1, :, :] if b.dim() > 2 else b), "bias"
    ),
    "sinks_ignored": _given(lambda c: c.without("sinks"), "sinks"),
    "sinks_scaled": _given(lambda c: c.given(sinks=scale_of(c) * c.tensors["sinks"]), "sinks"),
}
"""What is done inside a softmax, done to what any maths is given."""


def _is_about_calls(steps: Steps) -> bool:
    """Return whether all that is wrong is what the maths is given."""
    inner = replace(
        steps, given=RIGHT.given, visible=RIGHT.visible, spread=RIGHT.spread, scale=RIGHT.scale
    )
    return inner == RIGHT


def _of_any_maths(mistake: Mistake[Steps]) -> Mistake[Steps]:
    kept = tuple(each for each in mistake.definitions if _is_about_calls(each))
    return replace(mistake, definitions=_OWN.get(mistake.name, kept))


MISTAKES: tuple[Mistake[Steps], ...] = tuple(
    each for each in map(_of_any_maths, softmax.MISTAKES) if each.definitions
)
"""All named mistakes of attention that is no softmax."""
