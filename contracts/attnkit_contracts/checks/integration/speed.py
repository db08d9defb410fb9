"""I, continued: claims of speed, timed side by side with what they name.

The rule is that of `attnkit_contracts.instruments.clock`. It runs in the tier ``full`` alone: what
a run time is depends on what else the machine does, and a build should not.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import scaled_dot_product_attention

from attnkit.masks.constructors import Sizes
from attnkit_contracts.catalogue import (
    BrokenError,
    InconclusiveError,
    Measured,
    SkippedEnvError,
    check,
)
from attnkit_contracts.instruments.clock import compare, timer
from attnkit_contracts.judging.outputs import must_differ, near
from attnkit_contracts.subjects.operations import Operation

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from attnkit.promises import SpeedClaim
    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.subjects.subject import Subject


@check(
    "I7.speed",
    "What is claimed to take at most c times as long as another does: of run times in 40 to 120 "
    "rounds in random order, q25 / q25 of the other lies below c with its whole 95 % interval. "
    "Its outputs are the defined ones, before and after, for other values in the same memory too.",
    families=("softmax", "recurrence", "feedforward"),
    applies=lambda promises: bool(promises.speed),
    cases=lambda promises: ({"claim": str(claim)} for claim in promises.speed),
    tier="full",
    verdict="S",
    measures_time=True,
)
def speed(subject: Subject, claim: str) -> Measured:
    """Verify, time, and verify again."""
    (claimed,) = (each for each in subject.promises.speed if str(each) == claim)
    if not isinstance(subject, Operation):
        raise BrokenError("speed is claimed of what has no operation: it cannot be compared")
    _need(subject, claimed)
    call, other = (subject.draw_claimed(label, claimed) for label in ("I7", "I7 other"))
    target, baseline = subject.target, _baseline(subject, call, claimed)
    # with the options that a user gets
    candidate = partial(subject.called(call, target.variant, target.implementation), call.tensors)
    with torch.no_grad():
        before = _verified(subject, call, candidate())
        found = compare(
            timer(candidate, subject.device),
            timer(baseline, subject.device),
            claimed.max_ratio,
            seed=subject.target.seed,
        )
        for name, tensor in other.tensors.items():
            call.tensors[name].copy_(tensor)
        must_differ(before, _verified(subject, call, candidate()), "other values")
    told = f"{found.ratio}, control {found.control}, {found.rounds} rounds"
    if found.verdict == "undecided":
        if found.is_noisy:
            raise SkippedEnvError(f"machine too noisy: {told}")
        raise InconclusiveError(f"too near to {claimed.max_ratio:g} times {claimed.vs}: {told}")
    value = found.ratio.high if found.verdict == "within" else found.ratio.low
    return Measured(value, claimed.max_ratio, f"times as long as {claimed.vs} ({told})")


def _need(subject: Subject, claim: SpeedClaim) -> None:
    """Raise `SkippedEnvError` where the claim is not about this machine."""
    if subject.device.partition(":")[0] != claim.device:
        raise SkippedEnvError(f"claimed on {claim.device}, inputs on {subject.device}")
    if claim.device == "cuda":
        major, minor = torch.cuda.get_device_capability(subject.device)
        here = f"sm_{major}{minor}"
    else:
        here = torch.backends.cpu.get_cpu_capability()
    if claim.capability not in ("", here):
        raise SkippedEnvError(f"claimed for {claim.capability}, this is {here}")


def _baseline(subject: Operation, call: Call, claim: SpeedClaim) -> Callable[[], Tensor]:
    if claim.vs != "sdpa":
        variant, _, implementation = claim.vs.partition(".")
        return partial(subject.called(call, variant, implementation), call.tensors)
    query, key, value = (call.tensors[name] for name in ("query", "key", "value"))
    if claim.window is None:
        return lambda: scaled_dot_product_attention(query, key, value, is_causal=claim.causal)
    sizes = Sizes(claim.batch, claim.heads, claim.length, claim.length)
    seen = call.mask.to_bool(sizes, query.device)
    return lambda: scaled_dot_product_attention(query, key, value, attn_mask=seen)


def _verified(subject: Subject, call: Call, out: Tensor) -> Tensor:
    """Raise `BrokenError` unless an output is the defined one."""
    found = near(subject.bound(call, probes=4), out)
    if not found.value <= found.threshold:
        raise BrokenError(f"the output is off by {found.value:.4g} {found.unit} {found.where}")
    return out.clone()
