"""Makes a wrong call as small as it can be and still be wrong in the same way.

Greedy: one change at a time, the boldest first, kept if the fault persists; until no change is, or
`ATTEMPTS` calls were made.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from attnkit.errors import AttnkitError
from attnkit.masks.constructors import (
    Blocks,
    Dense,
    Documents,
    Mask,
    Or,
    Padding,
    PrefixLM,
    Sizes,
    SlidingWindow,
    blocks,
    dense,
    documents,
    full,
    left_padding,
    padding,
    prefix_lm,
    sliding_window,
)
from attnkit_contracts.diagnosis import observations as experiments
from attnkit_contracts.diagnosis.faults import fault_of
from attnkit_contracts.inputs.calls import TIME_AXIS, WITHOUT_BATCH
from attnkit_contracts.subjects.operations import RecurrenceOperation, SoftmaxOperation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from attnkit_contracts.diagnosis.observations import Fault
    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.subjects.subject import Subject

ATTEMPTS = 120
SECONDS = 1.0
"""Whichever comes first ends the search; a fast machine never meets the second."""

OPTIONAL = ("bias", "sinks", "initial_state", "beta", "log_decay")
BY_HEAD = ("query", "key", "value", "bias", "log_decay", "beta", "initial_state", "grad_out")


def one_sample(subject: Subject, call: Call, fault: Fault) -> Call:
    """Return the call of one sample that has the fault; the call as it is if none has."""
    batch = len(next(iter(call.tensors.values())))
    if batch <= 1:
        return call
    first = _sample_of(fault)
    for sample in dict.fromkeys([first, 0, batch - 1]):
        alone = samples(call, [sample])
        again = fault_of(subject, alone)
        if again is not None and (again.kind, again.name) == (fault.kind, fault.name):
            return alone
    return call


def _sample_of(fault: Fault) -> int:
    if fault.got is None or fault.limit is None or fault.got.shape != fault.limit.exact.shape:
        return 0
    off = (fault.got.double() - fault.limit.exact).abs() / fault.limit.unit
    wrong = ~(off.flatten(1).amax(1) <= fault.limit.gate)
    return int(wrong.nonzero()[0]) if wrong.any() else 0


def shrink(subject: Subject, call: Call, persists: Callable[[Call], bool]) -> Call:
    """Return the smallest call found for which the fault persists.

    Args:
        subject: Whose call it is.
        call: A wrong one.
        persists: Whether another call is wrong in the same way.
    """
    search = _Search(persists)
    compact = call.map(_written_out)
    if not search.tries(compact):
        return call
    call = compact
    while True:
        smaller = next((each for each in _smaller(subject, call) if search.tries(each)), None)
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


class _Search:
    """Counts attempts and watches the clock."""

    def __init__(self, persists: Callable[[Call], bool]) -> None:
        self.persists = persists
        self.left = ATTEMPTS
        self.until = time.monotonic() + SECONDS

    def tries(self, call: Call) -> bool:
        """Return whether the fault persists; False when the search is over."""
        if self.left <= 0 or time.monotonic() > self.until:
            return False
        self.left -= 1
        try:
            return self.persists(call)
        # a call that is cut too far is refused, in many ways
        except (AttnkitError, RuntimeError, ValueError, IndexError):
            return False


def _smaller(subject: Subject, call: Call) -> Iterator[Call]:
    """Yield smaller calls, the boldest change first."""
    sizes = experiments.sizes_of(call)
    yield from (samples(call, [b]) for b in range(min(sizes.batch, 4)) if sizes.batch > 1)
    yield from _plainer(call)
    if isinstance(subject, SoftmaxOperation):
        yield from _shorter_softmax(subject, call, sizes)
    else:
        yield from (tokens(call, 0, n) for n in _below(sizes.keys))
        if sizes.keys > 1:
            yield tokens(call, 1, sizes.keys)
    if isinstance(subject, SoftmaxOperation | RecurrenceOperation):
        yield from _fewer_heads(call)
        yield from _narrower(subject, call)


def _below(size: int) -> Iterator[int]:
    """Yield smaller sizes, the boldest first."""
    tried = (1, 2, 3, size // 2, size - size // 4, size - size // 8, size - 2, size - 1)
    yield from sorted({n for n in tried if 0 < n < size})


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
        rest = full()
        for part in parts:
            rest = rest if part is left_out else rest & part
        yield call.masked(rest)
    for part in parts:
        if isinstance(part, SlidingWindow) and part.window_size > 1:
            others = full()
            for other in parts:
                others = others if other is part else others & other
            yield from (call.masked(others & sliding_window(n)) for n in _below(part.window_size))


def _shorter_softmax(subject: SoftmaxOperation, call: Call, sizes: Sizes) -> Iterator[Call]:
    queries, keys = sizes.queries, sizes.keys
    if queries == keys:
        yield from (cut(call, n, n) for n in _below(keys))
    if subject.promises.cross:
        yield from (cut(call, n, keys) for n in _below(queries))
        yield from (cut(call, queries, n) for n in _below(keys))
        if queries != keys:
            both = min(queries, keys)
            yield from (cut(call, queries - n, keys - n) for n in (both - 1, both // 2, 1) if n)


def _fewer_heads(call: Call) -> Iterator[Call]:
    """Yield calls of fewer heads, by how many there are of each kind."""
    many = max(call.tensors[name].shape[1] for name in ("query", "value"))
    few = min(call.tensors[name].shape[1] for name in ("query", "value"))
    for heads, shared in ((1, 1), (2, 1), (4, 2), (many // 2, few), (many // 2, few // 2)):
        if heads < many and 0 < shared <= few and heads % shared == 0 and shared <= heads:
            yield call.map(lambda n, t, h=heads, s=shared: _heads(n, t, many, h, s)).masked(  # type: ignore[misc]  # defaults keep the loop's values
                _mask_of(call.mask, heads=heads)
            )


def _heads(name: str, tensor: Tensor, many: int, heads: int, shared: int) -> Tensor:
    if name == "sinks":
        return tensor[:heads]
    if name not in BY_HEAD or tensor.shape[1] == 1:
        return tensor
    return tensor[:, : heads if tensor.shape[1] == many else shared].contiguous()


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
        yield from (narrow(n, n) for n in _below(width))
    if subject.promises.value_width:
        yield from (narrow(n, value_width) for n in _below(width))
        yield from (narrow(width, n) for n in _below(value_width))


def samples(call: Call, index: list[int]) -> Call:
    """Return the call of some samples, with the mask of those."""
    return call.map(
        lambda name, tensor: (
            tensor if name in WITHOUT_BATCH or tensor.shape[0] == 1 else tensor[index]
        )
    ).masked(_mask_of(call.mask, samples=index))


def tokens(call: Call, start: int, stop: int) -> Call:
    """Return the call of some tokens, with the mask of those."""
    shorter = call.map(
        lambda name, tensor: (
            tensor.narrow(TIME_AXIS[name], start, stop - start).contiguous()
            if name in TIME_AXIS
            else tensor
        )
    )
    return shorter.masked(_mask_of(call.mask, first=start, keys=stop, queries=stop))


def cut(call: Call, queries: int, keys: int) -> Call:
    """Return the call of the first queries and keys, with the mask of those."""

    def of(name: str, tensor: Tensor) -> Tensor:
        if name in ("query", "grad_out"):
            return tensor[:, :, :queries].contiguous()
        if name in ("key", "value"):
            return tensor[:, :, :keys].contiguous()
        if name == "bias":
            rows = tensor if tensor.shape[2] == 1 else tensor[:, :, :queries]
            return (rows if tensor.shape[3] == 1 else rows[..., :keys]).contiguous()
        return tensor

    return call.map(of).masked(_mask_of(call.mask, queries=queries, keys=keys))


def _mask_of(
    mask: Mask,
    *,
    samples: list[int] | None = None,
    heads: int | None = None,
    queries: int | None = None,
    keys: int | None = None,
    first: int = 0,
) -> Mask:
    """Return the mask of some samples and of the first heads, queries and keys."""
    found = full()
    for part in mask.conjuncts():
        found = found & _Cut(samples, heads, queries, keys, first).of(part)
    return found


class _Cut:
    """Which samples, heads, queries and keys are left; None for all."""

    def __init__(
        self,
        samples: list[int] | None,
        heads: int | None,
        queries: int | None,
        keys: int | None,
        first: int,
    ) -> None:
        self.samples, self.heads, self.first = samples, heads, first
        self.queries, self.keys = queries, keys

    def of(self, part: Mask) -> Mask:
        """Return the part of a mask that is left."""
        if isinstance(part, Padding):
            made = left_padding if part.lengths is None else padding
            given = part.starts if part.lengths is None else part.lengths
            assert given is not None
            return made(self._counts(given))
        if isinstance(part, PrefixLM):
            return prefix_lm(self._counts(part.prefix))
        if isinstance(part, Documents):
            return documents(self._rows(part.ids)[:, self.first : self.keys])
        if isinstance(part, Dense):
            return dense(self._square(part.tensor, self.queries, self.keys))
        if isinstance(part, Blocks):
            size = part.block_size
            count = None if self.keys is None else -(-self.keys // size)
            return blocks(self._square(part.block_map, count, count), size)
        return self.of(part.left) | self.of(part.right) if isinstance(part, Or) else part

    def _rows(self, tensor: Tensor) -> Tensor:
        few = self.samples is None or (tensor.dim() == 4 and tensor.shape[0] == 1)
        return tensor if few else tensor[self.samples]

    def _counts(self, counts: Tensor) -> Tensor:
        left = (self._rows(counts) - self.first).clamp(min=0)
        return left if self.keys is None else left.clamp(max=self.keys - self.first)

    def _square(self, tensor: Tensor, rows: int | None, columns: int | None) -> Tensor:
        tensor = self._rows(tensor)
        tensor = tensor if tensor.shape[1] == 1 else tensor[:, : self.heads]
        tensor = tensor if tensor.shape[2] == 1 else tensor[:, :, :rows]
        return tensor if tensor.shape[3] == 1 else tensor[..., :columns]


def is_small(call: Call) -> bool:
    """Return whether all numbers of a call fit on a screen."""
    return sum(torch.numel(tensor) for tensor in call.tensors.values()) <= 64
