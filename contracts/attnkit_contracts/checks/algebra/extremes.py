"""A, continued: large and small numbers, and positions that are far from the first one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

import attnkit
from attnkit_contracts.catalogue import Measured, layer_check, recurrence_check, softmax_check
from attnkit_contracts.inputs import cuts
from attnkit_contracts.inputs.calls import PLACED
from attnkit_contracts.judging import outputs as judge

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from attnkit.promises import Decay, Promises
    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.subjects.layers import LayerSubject
    from attnkit_contracts.subjects.recurrence import RecurrenceOperation
    from attnkit_contracts.subjects.softmax import SoftmaxOperation
    from attnkit_contracts.subjects.subject import Subject

ROTARY_BASE = 10000.0


def _expect_finite_gradients(subject: Subject, call: Call, out: Tensor, what: str) -> None:
    """Raise `BrokenError` if a promised gradient is NaN or infinite."""
    if subject.promises.gradients:
        grad_out = subject.normal("A9 grad", *out.shape)
        judge.must_be_finite(judge.gradients(subject, call, grad_out), f"{what}: gradients")


@softmax_check(
    "A9.large_logits",
    "Logits of 1e2 and 1e4, and all logits of a row near -6e4, give finite outputs within the "
    "gate, finite gradients too.",
    cases=lambda _: [{"logits": name} for name in ("1e2", "1e4", "all near -6e4")],
    verdict="R",
)
def large_logits(subject: SoftmaxOperation, logits: str) -> Measured:
    """Scale the queries, or add the same large term to all logits of a row."""
    call = subject.draw("A9", length=40)
    query, key = call.tensors["query"], call.tensors["key"]
    if logits.startswith("all"):
        query, key = query.clone(), key.clone()
        # -1024 * 240 / sqrt(16) = -61440; both are numbers of every dtype
        query[..., 0], key[..., 0] = 1024.0, -240.0
    else:
        query = query * float(logits)
    call = call.given(query=query, key=key)
    out = subject(call)
    judge.must_be_finite({"output": out}, logits)
    _expect_finite_gradients(subject, call, out, f"logits of {logits}")
    return judge.near(subject.bound(call), out, logits)


def _decays(promises: Promises) -> Iterator[Mapping[str, Any]]:
    """Yield the forms of decay that are promised."""
    yield from ({"decay": name} for name in promises.decay if name != "none")


@recurrence_check(
    "A9.extreme_decays",
    "Decays of 1 - 2^-24, e^-1, e^-30, e^-100 and e^-1000, one after the other, give outputs "
    "within the gate; outputs, states and gradients are finite.",
    cases=_decays,
    applies=lambda promises: any(name != "none" for name in promises.decay),
    verdict="R",
)
def extreme_decays(subject: RecurrenceOperation, decay: Decay) -> Measured:
    """Mix them at random over tokens, heads and channels; the last half decays hardly at all."""
    call = subject.draw("A9", length=40, decay=decay)
    shape = tuple(call.tensors["log_decay"].shape)
    choices = torch.tensor([-(2.0**-24), -1.0, -30.0, -100.0, -1000.0], dtype=torch.float64)
    picked = torch.randint(len(choices), shape, generator=subject.random("A9 decays"))
    log_decay = choices[picked]
    log_decay[:, :, 20:] = -(2.0**-24)
    call = call.given(log_decay=subject.cast(log_decay))
    out, state = subject.both(call)
    judge.must_be_finite({"output": out, "state": state}, "extreme decays")
    _expect_finite_gradients(subject, call, out, "extreme decays")
    return judge.near(subject.bound(call), out)


@recurrence_check(
    "A9.infinite_decay",
    "A log_decay of -inf forgets all: outputs are within the gate; outputs, states and gradients "
    "are finite; and what came before moves nothing after it, not by one bit.",
    cases=_decays,
    applies=lambda promises: any(name != "none" for name in promises.decay),
    tier="standard",
    verdict="R",
)
def infinite_decay(subject: RecurrenceOperation, decay: Decay) -> Measured:
    """Forget all amid a chunk, and one head at the edge of one; enlarge what came before."""
    at, power = 5, 8 if subject.dtype == torch.float16 else 60
    call = subject.draw("A9", length=20, decay=decay, state=subject.promises.state)
    log_decay = call.tensors["log_decay"].clone()
    log_decay[:, :, at], log_decay[:, 0, 16] = float("-inf"), float("-inf")
    call = call.given(log_decay=log_decay)
    out, state = subject.both(call)
    judge.must_be_finite({"output": out, "state": state}, "log_decay of -inf")
    _expect_finite_gradients(subject, call, out, "log_decay of -inf")
    value = call.tensors["value"].clone()
    value[:, :, :at] *= 2.0**power
    given = {"value": value}
    if subject.promises.state:
        given["initial_state"] = call.tensors["initial_state"] * 2.0**power
    moved, after = subject.both(call.given(**given))
    judge.must_differ(
        moved[:, :, :at], out[:, :, :at], "larger values before the token that forgets"
    )
    judge.same_bits(out[:, :, at:], moved[:, :, at:], "outputs after log_decay of -inf")
    judge.same_bits(state, after, "the state after log_decay of -inf")
    return judge.near(subject.bound(call), out)


@layer_check(
    "A9.scaled_input",
    "Inputs 2^8 times as large or small as usual give finite outputs and gradients.",
    families=("softmax", "mixer", "feedforward"),
    cases=lambda _: [{"power": power} for power in (-8, 8)],
)
def scaled_input(subject: LayerSubject, power: int) -> Measured:
    """Scale x; float16 is left alone, which holds no third power of such numbers."""
    if subject.dtype == torch.float16:
        power //= 4
    call = subject.draw("A9", length=24).map(lambda _, x: x * 2.0**power)
    out = subject(call)
    judge.must_be_finite({"output": out}, f"x times 2**{power}")
    _expect_finite_gradients(subject, call, out, f"x times 2**{power}")
    return Measured(0.0, 0.0, "infinite elements")


@layer_check(
    "A10.offset",
    "With rotary positions, only distances count: tokens that begin at position c give what they "
    "give at position 0.",
    families=("softmax",),
    applies=lambda promises: "padding" in promises.masks,
    fields=("rotary_base",),
    tier="standard",
    verdict="R",
)
def offset(subject: LayerSubject) -> Measured:
    """Put c tokens of padding before them; positions beyond 256 are beyond bfloat16."""
    rotary = subject.remade(rotary_base=ROTARY_BASE)
    call = rotary.draw("A10", length=24)
    call = call.masked(rotary.mask(cuts.sizes_of(call), wide=PLACED))
    out = rotary(call)
    judge.must_differ(out, subject(call), "rotary positions")
    limit, found = rotary.bound(call), []
    for count in (16, 304):
        x = call.tensors["x"]
        longer = torch.cat((x.new_zeros(len(x), count, x.shape[2]), x), 1)
        counts = torch.tensor([count] * len(x), device=subject.device)
        padded = call.given(x=longer)
        mask = rotary.mask(cuts.sizes_of(padded), wide=PLACED) & attnkit.left_padding(counts)
        moved = rotary(padded.masked(mask))[:, count:]
        found.append(judge.agree(limit, out, moved, f"from position {count}"))
    return judge.worst(found)
