"""Makes a wrong call as small as it can be and still be wrong in the same way.

Greedy: one change at a time, the boldest first, kept if the fault persists; until no change is, or
`ATTEMPTS` calls were made, or calls of `WORK` in all. No clock ends it: what is found must not
depend on what else the machine does.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from attnkit.errors import AttnkitError
from attnkit.masks.constructors import SlidingWindow, sliding_window
from attnkit_contracts.diagnosis.faults import fault_of
from attnkit_contracts.inputs import cuts
from attnkit_contracts.inputs.cuts import below, samples, sizes_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from attnkit_contracts.diagnosis.observations import Fault
    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.subjects.subject import Subject

ATTEMPTS = 120
WORK = 20_000_000
"""Numbers, and pairs of a query and a key, in all calls that are made: a second or two of one core.
Small calls end after `ATTEMPTS`; of two long ones, this allows the first."""

OPTIONAL = ("bias", "sinks", "initial_state", "beta", "log_decay")


def one_sample(subject: Subject, call: Call, fault: Fault) -> Call:
    """Return the call of one sample that has the fault; the call as it is if none has."""
    batch = len(next(iter(call.tensors.values())))
    if batch <= 1:
        return call
    first = 0 if fault.beyond is None else int(fault.beyond.nonzero()[0, 0])
    for sample in dict.fromkeys([first, 0, batch - 1]):
        alone = samples(call, [sample])
        again = fault_of(subject, alone)
        if again is not None and (again.kind, again.name) == (fault.kind, fault.name):
            return alone
    return call


def shrink(subject: Subject, call: Call, persists: Callable[[Call], bool]) -> Call:
    """Return the smallest call found for which the fault persists."""
    left, work = ATTEMPTS, WORK

    def tries(other: Call) -> bool:
        """Return whether the fault persists; False when the search is over."""
        nonlocal left, work
        if left <= 0 or work <= 0:
            return False
        left, work = left - 1, work - work_of(other)
        try:
            return persists(other)
        # a call that is cut too far is refused, in many ways
        except (AttnkitError, RuntimeError, ValueError, IndexError):
            return False

    compact = call.map(_written_out)
    if not tries(compact):
        return call
    call = compact
    while True:
        smaller = next((each for each in _smaller(subject, call) if tries(each)), None)
        if smaller is None:
            return call
        call = smaller


def _written_out(name: str, tensor: Tensor) -> Tensor:
    """Return a tensor that can be cut along its axes: one of numbers side by side, a bias of four.

    Where a fault needs strides or fewer axes, it is gone then, and the call stays as it is.
    """
    plain = tensor.detach().contiguous()
    missing = 4 - plain.dim() if name == "bias" else 0
    return plain.reshape(*[1] * missing, *plain.shape)


def work_of(call: Call) -> int:
    """Return how much work a call is, as `WORK` counts it."""
    numbers = sum(tensor.numel() for tensor in call.tensors.values())
    return numbers + math.prod(sizes_of(call))


def _smaller(subject: Subject, call: Call) -> Iterator[Call]:
    """Yield smaller calls, the boldest change first."""
    batch = sizes_of(call).batch
    yield from (samples(call, [b]) for b in range(min(batch, 4)) if batch > 1)
    if batch > 2:
        # what shows between samples
        yield samples(call, [0, 1])
    yield from _plainer(call)
    yield from subject.shorter(call)
    if "query" in call.tensors:
        yield from _fewer_heads(call)
        yield from _narrower(subject, call)


def _plainer(call: Call) -> Iterator[Call]:
    """Yield calls without one of the options or parts of the mask, or with a smaller window."""
    if call.layout is not None:
        yield call.laid(None)
    yield from (call.without(name) for name in OPTIONAL if name in call.tensors)
    for name in call.extras:
        rest_of = {key: value for key, value in call.extras.items() if key != name}
        yield replace(call, extras=rest_of)
    parts = call.mask.conjuncts()
    for left_out in parts:
        yield call.masked(cuts.without(call.mask, left_out))
    for part in parts:
        if isinstance(part, SlidingWindow) and part.window_size > 1:
            others = cuts.without(call.mask, part)
            yield from (call.masked(others & sliding_window(n)) for n in below(part.window_size))


def _fewer_heads(call: Call) -> Iterator[Call]:
    """Yield calls of fewer heads, by how many there are of each kind."""
    many = max(call.tensors[name].shape[1] for name in ("query", "value"))
    few = min(call.tensors[name].shape[1] for name in ("query", "value"))
    for heads, shared in ((1, 1), (2, 1), (4, 2), (many // 2, few), (many // 2, few // 2)):
        if heads < many and 0 < shared <= few and heads % shared == 0 and shared <= heads:
            yield cuts.heads(call, heads, shared)


def _narrower(subject: Subject, call: Call) -> Iterator[Call]:
    """Yield calls of fewer channels; both widths, then each alone where they may differ."""
    width, value_width = call.tensors["query"].shape[3], call.tensors["value"].shape[3]

    def of(name: str, tensor: Tensor, keys: int, values: int) -> Tensor:
        if name in ("query", "key") or (name == "log_decay" and tensor.dim() == 4):
            return tensor[..., :keys].contiguous()
        if name in ("value", "grad_out"):
            return tensor[..., :values].contiguous()
        return tensor[..., :keys, :values].contiguous() if name == "initial_state" else tensor

    def narrow(keys: int, values: int) -> Call:
        return call.map(lambda name, tensor: of(name, tensor, keys, values))

    if width == value_width:
        yield from (narrow(n, n) for n in below(width))
    if subject.promises.value_width:
        yield from (narrow(n, value_width) for n in below(width))
        yield from (narrow(width, n) for n in below(value_width))


def is_small(call: Call) -> bool:
    """Return whether all numbers of a call fit on a screen."""
    return sum(torch.numel(tensor) for tensor in call.tensors.values()) <= 64
