"""N, continued: options and sizes in company, every two of them at least once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

import attnkit
from attnkit.errors import UnsupportedError
from attnkit.masks.constructors import Sizes
from attnkit_contracts.catalogue import Measured, check
from attnkit_contracts.inputs.calls import normal
from attnkit_contracts.inputs.factors import recurrence_rows, softmax_rows
from attnkit_contracts.judging.outputs import near, told

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from attnkit.masks.constructors import Mask
    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.subjects.operations import Operation
    from attnkit_contracts.subjects.recurrence import RecurrenceOperation
    from attnkit_contracts.subjects.softmax import SoftmaxOperation

    Row = Mapping[str, Any]


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
    if row["bias"] != "none":
        call = call.given(bias=_bias(subject, row["bias"], sizes, draw))
    if row["sinks"] != "none":
        call = call.given(sinks=subject.cast(_sinks(row["sinks"], heads, draw)))
    if row["softcap"] is not None:
        call = call.saying(softcap=row["softcap"])
    return call if row["scale"] == 1 else call.saying(scale=_scale(row["scale"], width**-0.5))


def _scale(said: Any, default: float) -> float:
    words = {"default": default, "one": 1.0}
    return float(words[said] if said in words else said * default)


def _bias(subject: SoftmaxOperation, kind: str, sizes: Sizes, draw: torch.Generator) -> Tensor:
    batch, heads, queries, keys = sizes
    drawn = normal(draw, 1 if kind == "of heads" else batch, heads, queries, keys)
    match kind:
        case "of heads":
            return subject.cast(drawn[:, :, :1])
        case "large":
            # neighbours of 64 lie 0.5 apart in bfloat16: as float32 it must not be rounded to that
            return subject.wide(64 + drawn)
        case "zero":
            return subject.cast(0 * drawn)
        case "constant rows":
            # which change no weight, however large
            constants = torch.tensor([0.0, -8192.0, 8192.0], dtype=drawn.dtype)
            rows = constants[torch.arange(queries) % 3]
            return subject.cast(rows[:, None].expand(sizes).contiguous())
        case _:
            return subject.cast(drawn)


def _sinks(kind: str, heads: int, draw: torch.Generator) -> Tensor:
    drawn = normal(draw, heads)
    if kind == "zero":
        return 0 * drawn
    if kind == "0 and 100":
        # beside drawn ones; beyond 88, exp overflows in float32
        turn = torch.arange(heads) % 3
        return torch.where(turn == 2, 100.0, torch.where(turn == 1, 0.0, drawn))
    return drawn


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
            # ids need not be sorted, nor the same for all samples, nor fit into eight bits
            later = positions >= (keys // (turn + 2))[:, None]
            last = (positions >= keys - 2) & (turn == 1)[:, None]
            return attnkit.documents(258 - 256 * later.long() - 3 * last.long())
        case "prefix":
            return attnkit.prefix_lm((turn + 1) % 3 * keys // 2)
        case "union":
            shown = torch.rand(batch, 1, 1, keys, generator=draw) < 0.4
            return attnkit.sliding_window(2) | attnkit.dense(shown.to(device))
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
    "N1.values",
    "r <= gate for every value of every promised option and size: options at 0, at 1, at their "
    "defaults said aloud and beyond where exp overflows; one key, as many samples as tokens, more "
    "heads than tokens, widths and lengths beyond tiles; and of 1100 keys under every mask part.",
    families=("softmax",),
    verdict="R",
)
def values(subject: SoftmaxOperation) -> Measured:
    """Compare calls in which every value occurs with the definition; see `inputs.factors`."""
    rows = softmax_rows(subject.promises, 1, exact=subject.is_exact)
    return _worst(subject, ((row, softmax_call(subject, row)) for row in rows), gradients=False)


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
    """Compare a covering set of calls with the definition; see `inputs.factors`."""
    rows = softmax_rows(subject.promises, 2, exact=subject.is_exact)
    return _worst(subject, ((row, softmax_call(subject, row)) for row in rows))


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
        state=row["state"] != "none",
    )
    if row["beta"] is not None:
        call = call.given(beta=subject.cast(_beta(row["beta"], call.tensors["beta"].shape, draw)))
    if row["rates"] != "drawn":
        rates = _rates(row["rates"], call.tensors["log_decay"].shape, draw)
        call = call.given(log_decay=subject.cast(rates))
    if row["state"] in ("zero", "large"):
        factor = 0 if row["state"] == "zero" else 1000
        call = call.given(initial_state=factor * call.tensors["initial_state"])
    if row["mask"] != "none":
        call = call.masked(call.mask & _part(row["mask"], sizes, draw, subject.device))
    return call if row["scale"] == 1 else call.saying(scale=_scale(row["scale"], 1.0))


def _beta(said: Any, shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    share = torch.rand(*shape, generator=draw, dtype=torch.float64)
    if said == "0 and 1":
        return share.round()
    if isinstance(said, str):
        return torch.full_like(share, float(said == "one"))
    low, high = said
    return torch.as_tensor(low + (high - low) * share)


def _rates(said: str, shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    """Return decays that are all 0, or 0, ordinary ones, and some that leave nothing."""
    choices = torch.tensor([0.0, -0.01, -0.1, -40.0, -100.0], dtype=torch.float64)
    picked = torch.randint(len(choices), shape, generator=draw)
    # mostly what is remembered
    picked = torch.where(torch.rand(*shape, generator=draw) < 0.1, picked, picked % 3)
    return torch.zeros(*shape) if said == "zero" else choices[picked]


@check(
    "N1.recurrence_values",
    "r <= gate, for the output and the final state, for every value of every promised option and "
    "size: gates, scale and state at 0 and 1 and large, decays from 0 to -100, as many samples as "
    "tokens, more heads than tokens, widths beyond tiles, 300 tokens under every mask part.",
    families=("recurrence",),
    # of states so large, outputs overflow in float16
    dtypes=("float64", "float32", "bfloat16"),
    verdict="R",
)
def recurrence_values(subject: RecurrenceOperation) -> Measured:
    """Compare calls in which every value occurs with the recurrence run token by token."""
    rows = recurrence_rows(subject.promises, 1)
    return _worst(subject, ((row, recurrence_call(subject, row)) for row in rows), gradients=False)


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
    rows = recurrence_rows(subject.promises, 2)
    return _worst(subject, ((row, recurrence_call(subject, row)) for row in rows))


def _worst(
    subject: Operation, calls: Iterator[tuple[Row, Call]], *, gradients: bool = True
) -> Measured:
    """Return the worst of all, or the first that is beyond its threshold.

    A combination that an implementation refuses by name is left out, unless it refuses all.
    """
    most, refused = None, UnsupportedError("no combination fits the promises")
    for row, call in calls:
        grads = subject.grads(call) if gradients else {}
        try:
            got = subject.answers(call, grads)
        except UnsupportedError as error:
            refused = error
            continue
        limits = subject.bounds(call, grads) if gradients else subject.output_bounds(call)
        for name, limit in limits.items():
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
