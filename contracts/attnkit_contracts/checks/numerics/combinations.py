"""N, continued: options and sizes in company, every two of them at least once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

import attnkit
from attnkit.errors import UnsupportedError
from attnkit.masks.constructors import Sizes
from attnkit_contracts.catalogue import Measured, check
from attnkit_contracts.inputs.calls import normal
from attnkit_contracts.inputs.pairwise import pairwise
from attnkit_contracts.judging.outputs import near, told

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from attnkit.masks.constructors import Mask
    from attnkit.promises import Promises
    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.subjects.operations import Operation
    from attnkit_contracts.subjects.recurrence import RecurrenceOperation
    from attnkit_contracts.subjects.softmax import SoftmaxOperation

    Factors = dict[str, tuple[Any, ...]]
    Row = Mapping[str, Any]

LOGITS, NUMBERS, STATES = 30_000, 260_000, 150_000
"""The most logits, numbers in query, key and value, and numbers in all L states of a recurrence,
of one combination: what keeps the checks cheap."""


def softmax_factors(promises: Promises) -> Factors:
    """Return the values of every factor that the promises allow, plain ones first."""
    lengths = [(33, 33), (5, 5), (150, 150)]
    if promises.cross:
        # whose queries stand at keys has no more queries than keys
        by_key = {"documents", "blocks"} & set(promises.needs)
        lengths += [(1, 70), (33, 70)] + ([] if by_key else [(70, 33)])
    heads = [(1, 1)]
    if promises.heads == "many":
        heads += [(3, 3), (12, 12)]
        heads += [(6, 3), (6, 2), (16, 1)] if promises.gqa else []
    widths = [(8, 8), (24, 24), (64, 64), (72, 72), (100, 100), (128, 128), (192, 192)]
    if promises.value_width:
        widths = [(8, 24), (24, 8), (64, 64), (72, 40), (100, 100), (128, 64), (192, 128)]
    return {
        "mask": tuple(_masks(promises)),
        "widths": tuple(widths),
        "lengths": tuple(lengths),
        "heads": tuple(heads),
        "batch": (3, 1, 65),
        "bias": ("none", "full", "of heads", "large") if promises.bias else ("none",),
        # times the default
        "scale": (1, 0, -1, 4) if promises.scale else (1,),
        "softcap": (None, 1.5) if promises.softcap else (None,),
        "sinks": (False, True) if promises.sinks else (False,),
    }


def _masks(promises: Promises) -> Iterator[str]:
    """Yield ways and parts: all parts beside one way, the plain mask of the other."""
    ways = [way for way in ("causal", "bidirectional") if getattr(promises, way)]
    yield from ways
    for part in promises.masks:
        # a prefix shows nothing beside causal; what a variant needs, every mask of it has
        way = "bidirectional" if part == "prefix" else ways[0]
        if part not in (*promises.needs, "union") and way in ways:
            yield f"{way}+{part}"


def _fits_softmax(row: Row) -> bool:
    batch, (heads, _) = row.get("batch", 1), row.get("heads", (1, 1))
    queries, keys = row.get("lengths", (1, 1))
    by_key = row.get("mask", "").endswith(("documents", "blocks"))
    numbers = batch * heads * (queries + keys) * sum(row.get("widths", (1, 1)))
    cheap = batch * heads * queries * keys <= LOGITS and numbers <= NUMBERS
    return cheap and not (by_key and queries > keys)


def softmax_call(subject: SoftmaxOperation, row: Row) -> Call:
    """Return the call that a combination names."""
    (queries, keys), (heads, kv_heads), batch = row["lengths"], row["heads"], row["batch"]
    (width, value_width), sizes = row["widths"], Sizes(batch, heads, queries, keys)
    label, (way, _, part) = f"N1 {dict(row)}", row["mask"].partition("+")
    draw = subject.random(f"{label} options")
    mask = subject.mask(sizes, causal=way == "causal")
    call = subject.draw(
        label,
        batch=batch,
        length=queries,
        keys=keys,
        heads=heads,
        kv_heads=kv_heads,
        width=width,
        value_width=value_width,
        mask=mask & _part(part, sizes, draw, subject.device) if part else mask,
    )
    shape = (1, heads, 1, keys) if row["bias"] == "of heads" else tuple(sizes)
    if row["bias"] == "large":
        # neighbours of 64 lie 0.5 apart in bfloat16: as float32 it must not be rounded to that
        call = call.given(bias=subject.wide(64 + normal(draw, *shape)))
    elif row["bias"] != "none":
        call = call.given(bias=subject.cast(normal(draw, *shape)))
    if row["sinks"]:
        call = call.given(sinks=subject.cast(normal(draw, heads)))
    if row["softcap"] is not None:
        call = call.saying(softcap=row["softcap"])
    return call if row["scale"] == 1 else call.saying(scale=row["scale"] * width**-0.5)


def _part(part: str, sizes: Sizes, draw: torch.Generator, device: str) -> Mask:
    """Return a mask of this kind that is another one for every sample and head, as it may be."""
    batch, heads, _, keys = sizes
    turn = torch.arange(batch, device=device) % 3
    positions = torch.arange(keys, device=device)
    match part:
        case "window":
            return attnkit.sliding_window(3)
        case "padding":
            # half of the keys, all of them, none
            return attnkit.padding((turn + 1) % 3 * keys // 2)
        case "documents":
            # ids need not be sorted, nor the same for all samples
            later = positions >= (keys // (turn + 2))[:, None]
            return attnkit.documents(9 - 7 * later.long() - 3 * (positions >= keys - 2).long())
        case "prefix":
            return attnkit.prefix_lm((turn + 1) % 3 * keys // 2)
        case "dense":
            seen = torch.rand(*sizes, generator=draw) < 0.6
            # and rows that see nothing
            seen[:, :, ::4] &= (torch.arange(batch) % 2 == 1)[:, None, None, None]
            return attnkit.dense(seen.to(device))
        case _:
            count = -(-keys // 8)
            shown = torch.rand(batch, heads, count, count, generator=draw) < 0.6
            return attnkit.blocks(shown.to(device), 8)


@check(
    "N1.combinations",
    "r <= gate, for the output and for every gradient, whichever two promised options and sizes "
    "come together: masks, heads, widths, lengths, batches, bias, scale, softcap, sinks.",
    families=("softmax",),
    dtypes=("float32", "bfloat16"),
    tier="standard",
    verdict="R",
)
def combinations(subject: SoftmaxOperation) -> Measured:
    """Compare a covering set of calls with the definition; see `pairwise`."""
    rows = pairwise(softmax_factors(subject.promises), _fits_softmax)
    return _worst(subject, ((row, softmax_call(subject, row)) for row in rows))


def recurrence_factors(promises: Promises) -> Factors:
    """Return the values of every factor that the promises allow, plain ones first."""
    groups = [(1, 1), (3, 3), (12, 12)] + ([(6, 3), (6, 2), (16, 1)] if promises.gqa else [])
    widths = [(8, 8), (24, 24), (40, 40), (130, 130)]
    if promises.value_width:
        widths = [(8, 24), (24, 8), (40, 72), (100, 16), (192, 8)]
    # a gate beyond 1 overshoots, as one below 0 does: the definition has no bounds
    beta: tuple[Any, ...] = ((0, 1), (-0.5, 2)) if promises.beta else ()
    parts = [part for part in promises.masks if part not in promises.needs]
    masks = [part for part in parts if part in ("padding", "documents")]
    return {
        "widths": tuple(widths),
        "groups": tuple(groups),
        "length": (20, 50, 150, 1, 3) if promises.state else (20, 50, 150),
        "batch": (2, 1, 65),
        "decay": promises.decay or ("none",),
        "beta": (None, *beta),
        "scale": (1, 0, -1, 4) if promises.scale else (1,),
        "state": (False, True) if promises.state else (False,),
        "mask": ("none", *masks),
    }


def _fits_recurrence(row: Row) -> bool:
    sizes = (row.get("batch", 1), row.get("groups", (1, 1))[0], row.get("length", 1))
    # a lone token without a state may have gradients that are 0 but for rounding: no unit fits
    lone = row.get("length", 20) < 20 and not row.get("state", True)
    return math.prod((*sizes, *row.get("widths", (1, 1)))) <= STATES and not lone


def recurrence_call(subject: RecurrenceOperation, row: Row) -> Call:
    """Return the call that a combination names."""
    (width, value_width), (heads, groups), batch = row["widths"], row["groups"], row["batch"]
    label, sizes = f"N1 {dict(row)}", Sizes(batch, heads, row["length"], row["length"])
    draw = subject.random(f"{label} options")
    call = subject.draw(
        label,
        batch=batch,
        length=row["length"],
        heads=heads,
        groups=groups,
        width=width,
        value_width=value_width,
        decay=row["decay"],
        beta=row["beta"] is not None,
        state=row["state"],
    )
    if row["beta"] is not None:
        low, high = row["beta"]
        share = torch.rand(*call.tensors["beta"].shape, generator=draw, dtype=torch.float64)
        call = call.given(beta=subject.cast(low + (high - low) * share))
    if row["mask"] != "none":
        call = call.masked(call.mask & _part(row["mask"], sizes, draw, subject.device))
    return call if row["scale"] == 1 else call.saying(scale=float(row["scale"]))


@check(
    "N1.recurrence_combinations",
    "r <= gate, for the output, the final state and every gradient, whichever two promised options "
    "and sizes come together: decay, beta, groups, widths, lengths, batches, state, scale, masks.",
    families=("recurrence",),
    dtypes=("float32", "bfloat16"),
    tier="standard",
    verdict="R",
)
def recurrence_combinations(subject: RecurrenceOperation) -> Measured:
    """Compare a covering set of calls with the recurrence run token by token in float64."""
    rows = pairwise(recurrence_factors(subject.promises), _fits_recurrence)
    return _worst(subject, ((row, recurrence_call(subject, row)) for row in rows))


def _worst(subject: Operation, calls: Iterator[tuple[Row, Call]]) -> Measured:
    """Return the worst of all, or the first that is beyond its threshold.

    A combination that an implementation refuses by name is left out, unless it refuses all.
    """
    most, refused = None, UnsupportedError("no combination fits the promises")
    for row, call in calls:
        grads = subject.grads(call)
        try:
            got = subject.answers(call, grads)
        except UnsupportedError as error:
            refused = error
            continue
        for name, limit in subject.bounds(call, grads).items():
            found = near(limit, got[name], f"{told(name)}, {_told(row)}")
            if not found.value <= found.threshold:
                return found
            share = found.value / found.threshold
            if most is None or share > most.value:
                most = Measured(share, 1.0, "gates", found.where)
    if most is None:
        raise refused
    return most


def _told(row: Row) -> str:
    return ", ".join(f"{name}={value}" for name, value in row.items())
