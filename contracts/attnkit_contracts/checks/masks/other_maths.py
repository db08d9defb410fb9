"""M15: masks of attention that is no softmax. What is seen need not count, what is hidden must not.

Which keys count is the variant's own affair: it may leave out small weights, or mix heads. So
values are compared with its reference, and bits where that shows no influence either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

import attnkit
from attnkit.masks.constructors import Sizes
from attnkit.promises import ALL_MASK_PARTS
from attnkit_contracts.catalogue import BrokenError, Measured, check
from attnkit_contracts.checks.masks.forms import PROBES, together, wide
from attnkit_contracts.checks.masks.padding import can_hide_all
from attnkit_contracts.checks.masks.visibility import (
    masked_calls,
    named_mask,
    shapes,
    unequal,
    ways,
)
from attnkit_contracts.inputs import cuts
from attnkit_contracts.judging import outputs as judge
from attnkit_contracts.subjects.target import Reading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

    from attnkit.masks.constructors import Mask
    from attnkit.promises import Promises
    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.subjects.softmax import SoftmaxOperation

    Attend = Callable[[Call], Tensor]

LENGTH = 70
"""Beyond a tile of 64, and no multiple of 8."""

ROWS, BACKWARD = 5, 3
"""How many queries of a call are looked at alone, and of how many the gradients."""

HELD = 1000.0
"""How much larger than usual values at hidden keys become: a weight of 1e-9 shows."""


def _masks(promises: Promises) -> Iterator[Mapping[str, Any]]:
    """Yield each promised part beside one way, all beside each, empty rows, and L != S."""
    first = ways(promises)[0]
    for case in shapes(promises):
        way, _, part = case["mask"].partition("+")
        # beside causal, a prefix shows nothing
        if not part or part == "prefix" or way == first:
            yield case
    yield from together(promises)
    if can_hide_all(promises):
        yield {"mask": "rows that see nothing"}
    if promises.cross:
        window = "+window" if {"window"} <= set(promises.masks) - set(promises.needs) else ""
        yield from ({"mask": first + window, **sizes} for sizes in unequal(promises))


@check(
    "M15.hidden_keys",
    "Of maths that is no softmax, under every promised mask, of L = S and L != S: output and "
    "gradients are the reference's, r <= gate; and what a key holds that is hidden from a query "
    "moves its output by no bit, and gets a gradient of exactly 0 from it, where the reference "
    "says so.",
    families=("softmax",),
    relations=("approximate", "different"),
    cases=_masks,
    verdict="R",
    required=True,
)
def hidden_keys(
    subject: SoftmaxOperation, mask: str, queries: int = LENGTH, keys: int = LENGTH
) -> Measured:
    """Compare with the reference; then disturb all that one query does not see."""
    found = []
    for what, call in _calls(subject, mask, queries, keys):
        grads = subject.grads(call)
        limits = subject.bounds(call, grads, Reading(probes=PROBES))
        got = subject.answers(call, grads)
        found += [judge.near(limits[n], got[n], f"{judge.told(n)}, {what}") for n in limits]
        _expect_hidden(subject, call, what)
        if grads:
            _expect_no_gradient(subject, call, what)
    return judge.worst(found)


def _calls(
    subject: SoftmaxOperation, mask: str, queries: int, keys: int
) -> Iterator[tuple[str, Call]]:
    if mask == "rows that see nothing":
        yield from ((what, call) for what, call, _ in masked_calls(subject))
        return
    way, *parts = mask.split("+")
    shared = 1 if subject.promises.gqa and len(parts) > 1 else subject.heads
    sizes = Sizes(2, subject.heads, queries, keys)
    call = subject.draw("M15", length=queries, keys=keys, kv_heads=shared)
    if len(parts) < 2:
        yield mask, call.masked(named_mask(subject, mask, sizes))
        return
    plain = joined = subject.mask(sizes, causal=way == "causal", wide=ALL_MASK_PARTS)
    for part in parts:
        joined = joined & wide(part, sizes, subject.device)
    yield mask, call.masked(joined)
    if "dense" in subject.promises.masks:
        seen = joined.to_bool(sizes, torch.device(subject.device))
        yield f"{mask}, written as a tensor", call.masked(plain & attnkit.dense(seen))


def _hidden(call: Call, row: int) -> Tensor:
    """Return the keys that no head of a group shows to a query, (B, Hkv, S)."""
    sizes, key = cuts.sizes_of(call), call.tensors["key"]
    seen = call.mask.to_bool(sizes, key.device).expand(*sizes)[:, :, row]
    return ~torch.unflatten(seen, 1, (key.shape[1], -1)).any(2)


def _rows(call: Call, count: int) -> list[int]:
    """Return some queries, the first and the last among them."""
    last = cuts.sizes_of(call).queries - 1
    return sorted({last * step // (count - 1) for step in range(count)})


def _expect_hidden(subject: SoftmaxOperation, call: Call, what: str) -> None:
    """Raise `BrokenError` if a query's output moves with what is hidden from it."""

    def moved(attend: Attend, whole: Tensor, row: int) -> Tensor:
        hidden = _hidden(call, row)[..., None]
        fresh = {
            name: torch.where(hidden, size * subject.normal(f"M15 {name}", *held.shape), held)
            for name, size in (("key", 3.0), ("value", HELD))
            for held in [call.tensors[name]]
        }
        return attend(call.given(**fresh))[:, :, row] != whole[:, :, row]

    _where_the_reference_has_none(
        subject, call, moved, _rows(call, ROWS), f"{what}: its output moves with a hidden key"
    )


def _expect_no_gradient(subject: SoftmaxOperation, call: Call, what: str) -> None:
    """Raise `BrokenError` if a query sends a gradient to a key that is hidden from it."""
    leaves = call.leaves()

    def sent(_: Attend, whole: Tensor, row: int) -> Tensor:
        one = torch.zeros_like(whole)
        one[:, :, row] = subject.normal("M15 grad", *one[:, :, row].shape).to(one)
        hidden = _hidden(call, row)[..., None]
        given = [leaves.tensors[name] for name in ("key", "value")]
        found = torch.autograd.grad(whole, given, one, retain_graph=True, materialize_grads=True)
        return torch.stack([((each != 0) & hidden).flatten(2).any(-1) for each in found], -1)

    told = f"{what}: it sends a gradient to a hidden key"
    _where_the_reference_has_none(subject, leaves, sent, _rows(call, BACKWARD), told)


def _where_the_reference_has_none(
    subject: SoftmaxOperation,
    call: Call,
    influence: Callable[[Attend, Tensor, int], Tensor],
    rows: list[int],
    told: str,
) -> None:
    """Raise `BrokenError` for an influence on a query that the reference does not have."""

    def defined(call: Call) -> Tensor:
        return subject.definition(call)({n: t.double() for n, t in call.tensors.items()})["out"]

    def outputs(attend: Attend) -> Tensor:
        with torch.set_grad_enabled(any(t.requires_grad for t in call.tensors.values())):
            return attend(call)

    own = outputs(subject)
    for row in rows:
        got = influence(subject, own, row)
        if not got.any():
            continue
        wrong = got & ~influence(defined, outputs(defined), row)
        if wrong.any():
            sample, head = (int(index) for index in wrong.nonzero()[0][:2])
            raise BrokenError(f"query {row} of head {head}, sample {sample}, {told}")


@check(
    "M15.windows",
    "Of maths that is no softmax: with windows of 1, 2, 63, 64, 65, S and S + 5 keys, at L = S and "
    "L < S, the output is the reference's, r <= gate.",
    families=("softmax",),
    relations=("approximate", "different"),
    applies=lambda promises: "window" in promises.masks,
    verdict="R",
)
def windows(subject: SoftmaxOperation) -> Measured:
    """Compare with the reference around edges of tiles."""
    found = []
    for queries in (LENGTH, 9) if subject.promises.cross else (LENGTH,):
        sizes = Sizes(1, subject.heads, queries, LENGTH)
        for way in ways(subject.promises):
            others = subject.mask(sizes, causal=way == "causal", wide=ALL_MASK_PARTS)
            edges = (63, 65, LENGTH, LENGTH + 5) if way == ways(subject.promises)[0] else ()
            for size in (1, 2, 64, *edges):
                mask: Mask = others & attnkit.sliding_window(size)
                call = subject.draw("M15", batch=1, length=queries, keys=LENGTH, mask=mask)
                what = f"window_size={size}, L={queries}, S={LENGTH}, {way}"
                found.append(judge.near(subject.bound(call, PROBES), subject(call), what))
    return judge.worst(found)
