"""I and N, continued: how errors, memory and work grow with the length."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.utils.flop_counter import FlopCounterMode

import attnkit
from attnkit_contracts.catalogue import (
    InconclusiveError,
    Measured,
    call_check,
    mixing_check,
    operation_check,
)
from attnkit_contracts.instruments.poison_and_meters import Meter
from attnkit_contracts.judging import outputs as judge

if TYPE_CHECKING:
    from torch import Tensor

    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.subjects.operations import Operation
    from attnkit_contracts.subjects.subject import Subject

ROWS = 70_000
"""More than a grid of blocks, or a number of 16 bits, has room for."""

SHORT, LONG = 512, 1024
"""Lengths between which growth is measured: tiles of 64 to 256 have several of both."""

BETWEEN = 1.5
"""Exponent half-way between what grows as the length and what grows as its square."""


@mixing_check(
    "N7.growth",
    "r <= gate at 128, 1024 and 4096 tokens: the error grows no faster than its unit.",
    tier="full",
    verdict="R",
)
def growth(subject: Subject) -> Measured:
    """Compare with the definition; a layer's with its own in float64, given all at once."""
    found = []
    for length in (128, 1024, 4096):
        call = subject.draw("N7", batch=1, length=length)
        limit, out = subject.bound(call, probes=2), subject(call)
        found.append(subject.error(limit, out, f"L={length}"))
    return judge.worst(found)


@operation_check(
    "N7.rows",
    "r <= gate for 70000 samples of a token: more rows than 16 bits count.",
    dtypes=("float32",),
    tier="standard",
    verdict="R",
)
def rows(subject: Operation) -> Measured:
    """Compare with the definition."""
    call = subject.draw("N7 rows", batch=ROWS, length=1, heads=1, width=2)
    return judge.near(subject.bound(call, probes=2), subject(call), f"{ROWS} rows")


@call_check(
    "I6.memory",
    "What is promised to take memory as L does not take it as L^2: the most bytes that operations "
    "hold at once grow by less than 2^1.5 when L doubles, forward and backward.",
    applies=lambda promises: promises.memory == "L",
    dtypes=("float32",),
    tier="standard",
    verdict="R",
)
def memory(subject: Subject) -> Measured:
    """Count the bytes of every result of an operation while it lives."""
    peaks = []
    for length in (SHORT, LONG):
        call = _long(subject, length)
        _run(subject, call)
        with Meter() as meter:
            _run(subject, call)
        peaks.append(meter.peak)
    return _exponent(peaks, "bytes")


@call_check(
    "I6.work",
    "What is promised to take time as L or L w does not take it as L^2: elements moved, and "
    "multiplications of products, grow by less than 2^1.5 when L doubles.",
    applies=lambda promises: (
        promises.time == "L" or (promises.time == "L*w" and bool(promises.needs))
    ),
    dtypes=("float32",),
    tier="standard",
    verdict="R",
)
def work(subject: Subject) -> Measured:
    """Count operations, not seconds: counts do not depend on the machine or its load."""
    moved, flops = [], []
    for length in (SHORT, LONG):
        call = _long(subject, length)
        with torch.no_grad():
            subject(call)
            with FlopCounterMode(display=False) as counter, Meter() as meter:
                subject(call)
        moved.append(meter.moved)
        flops.append(counter.get_total_flops())
    found = [_exponent(moved, "elements moved")]
    if all(flops):
        found.append(_exponent(flops, "multiplications"))
    return judge.worst(found)


def _long(subject: Subject, length: int) -> Call:
    call = subject.draw("I6", batch=1, length=length)
    if "blocks" not in subject.promises.needs:
        return call
    # as many blocks per row however many there are
    row = torch.arange(-(-length // 32), device=subject.device)
    band = attnkit.blocks((row[:, None] - row).abs() < 2, 32)
    return call.masked(attnkit.causal() & band if subject.promises.causal else band)


def _run(subject: Subject, call: Call) -> Tensor | None:
    """Run forward and, where gradients are promised, backward."""
    if not subject.promises.gradients:
        with torch.no_grad():
            return subject(call)
    leaves = call.leaves()
    with torch.enable_grad():
        out = subject(leaves)
    grad_out = subject.normal("I6 grad", *out.shape)
    out.backward(grad_out)  # type: ignore[no-untyped-call]  # torch leaves backward untyped
    return None


def _exponent(counts: list[int], what: str) -> Measured:
    """Return the exponent of growth between the two lengths."""
    short, long = counts
    if not short or not long:
        raise InconclusiveError(f"no {what} were counted")
    exponent = math.log(long / short) / math.log(LONG / SHORT)
    where = f"{what}: {short} at L={SHORT}, {long} at L={LONG}"
    return Measured(exponent, BETWEEN, "power of L", where)
