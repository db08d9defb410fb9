"""A softmax variant in place of a layer's attention function, and the unit of its errors.

An exact swap is measured against the model's own function, run on the same tensors in float64, in
the unit of attention; P|V| is that function's answer for |V|. A swap to other mathematics is
measured against the variant's own reference, in probe units, as nothing is known of its weights;
see `attnkit.precision` for both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from attnkit import precision, reference
from attnkit.choice.front import choose
from attnkit.errors import UnsupportedError
from attnkit.masks import constructors as masks
from attnkit.masks.constructors import Mask, Sizes
from attnkit.operations.attention import answer, attention, problem_of, sizes_of
from attnkit.problem import SoftmaxProblem
from attnkit.swaps.families import Assignment, Attempt, Measure, Standing, SwapFamily
from attnkit.swaps.obstacles import LENGTH, beyond_attention
from attnkit.swaps.verification.reach import (
    BATCH,
    LONG,
    SHORT,
    Case,
    Further,
    drawn,
    of_gradients,
    reached,
    untouched,
)
from attnkit.swaps.verification.trial import SITE_BOUND

if TYPE_CHECKING:
    from attnkit.hosts.protocol import Call, Host, Request
    from attnkit.interface import Variant

_ELEMENTS = 1 << 24
"""How many logits a float64 run may hold at a time."""


@dataclass(frozen=True)
class Running(Standing):
    """A mixer that runs a softmax variant."""

    variant: Variant
    implementation: str = "auto"
    fallback: tuple[str, ...] = ()
    window_size: int | None = None

    def __call__(self, request: Request) -> Tensor:
        """Answer a site's call."""
        call = self.narrowed(request.call())
        return answer(call, self.variant, self.implementation, self.fallback)

    def narrowed(self, call: Call) -> Call:
        """Add the plan's window to the mask of a call."""
        if self.window_size is None:
            return call
        if not call.aligned:
            raise UnsupportedError(
                "window_size: needs to know where the queries stand among the keys, which this "
                "call does not tell (cross-attention, or a static cache while compiling); leave "
                "the layer out, or use a dynamic cache"
            )
        return replace(call, mask=_windowed(call.mask, self.window_size))

    def attempt(self, request: Request, *, exact: bool) -> Tried:
        call = self.narrowed(request.call())
        problem = problem_of(**call.arguments())
        chosen = choose(self.variant, problem, self.implementation, self.fallback).key
        return Tried(chosen, self(request), self.variant, request, call, exact)

    def beyond(self, attempt: Tried) -> tuple[Further, ...]:
        call, size = attempt.call, attempt.sizes
        asked = replace(problem_of(**call.arguments()), batch=1, query_length=1, key_length=1)
        question = (asked, size.queries == size.keys, call.scale, call.softcap, attempt.exact)
        how = self.implementation, tuple(self.fallback)
        return reached(self.variant, (*question, *how), lambda: self._farther(attempt))

    def _farther(self, attempt: Tried) -> Iterator[Case]:
        """Yield the calls that one call of a model may be followed by."""
        call, exact = attempt.call, attempt.exact
        lengths, trained = {f"{LONG} tokens": (LONG, LONG)}, {f"{SHORT} tokens": (SHORT, SHORT)}
        cached = {f"70 tokens on {LONG} keys": (70, LONG), f"one token on {LONG}": (1, LONG)}
        if attempt.sizes.queries != attempt.sizes.keys:
            lengths, trained = cached, {f"70 tokens on {SHORT} keys": (70, SHORT)}
            if not call.mask.is_causal:
                lengths |= {f"{LONG} tokens on 70 keys": (LONG, 70)}
        elif call.mask.is_causal:
            few = {"3 tokens on 40 keys": (3, 40), "2 tokens": (2, 2), "one token": (1, 1)}
            lengths |= {**cached, **few}
            trained |= {f"70 tokens on {SHORT} keys": (70, SHORT)}
        padded = replace(call, mask=call.mask & masks.padding([1] * attempt.sizes.batch))
        for what, (queries, keys) in lengths.items():
            yield from self._case(what, call, queries, keys, exact)
        # what other maths makes of padding is asked of the whole model, as a leak
        if exact and "padding" not in call.mask.parts:
            yield from self._case("40 tokens with padding", padded, 40, 40, exact)
        for what, (queries, keys) in trained.items():
            made = _like(call, queries, keys)
            if made is not None:
                yield Case(f"gradients of {what}", partial(self._of_gradients, made, exact))

    def _case(self, what: str, call: Call, queries: int, keys: int, exact: bool) -> Iterator[Case]:
        made = _like(call, queries, keys)
        if made is not None:
            yield Case(what, partial(self._error, made, exact))

    def _error(self, call: Call, exact: bool) -> float:
        with untouched(_floats(call), self.variant.name):
            out = answer(call, self.variant, self.implementation, self.fallback)
        tried = Tried("", out, self.variant, Defined(call), call, exact)
        errors = (precision.worst(out[at], *measured) for at, *measured in tried.measures())
        return max(errors) / SITE_BOUND

    def _of_gradients(self, call: Call, exact: bool) -> float:
        def run(tensors: Mapping[str, Any]) -> Tensor:
            made = replace(call, **tensors)
            return answer(made, self.variant, self.implementation, self.fallback)

        def defined(tensors: Mapping[str, Any]) -> Tensor:
            made = replace(call, **tensors)
            return _reference(made) if exact else _own_reference(made, self.variant)

        return of_gradients(run, defined, _floats(call))


@dataclass(eq=False)
class Tried(Attempt):
    """A softmax variant's answer to one call."""

    variant: Variant
    request: Request
    call: Call
    exact: bool

    def __post_init__(self) -> None:
        """Note who sees what."""
        self.sizes = sizes_of(self.call)
        seen = self.call.mask.to_bool(self.sizes, self.call.query.device)
        self.seen = seen.expand(self.sizes.batch, -1, -1, -1)  # (B, 1 or H, L, S)
        # rows that see a key
        self.rows = self.seen.any(dim=-1, keepdim=True)  # (B, 1 or H, L, 1)

    def left_out(self) -> int:
        return int((~self.rows).sum()) * (self.sizes.heads // self.rows.shape[1])

    def measures(self) -> Iterator[Measure]:
        for part in _parts(self.sizes):
            judged = self._as_own if self.exact else self._as_defined
            yield Measure(part, *judged(_cut(self.call, part), part), self.rows[part])

    def _as_own(self, wide: Call, part: slice) -> tuple[Tensor, Tensor]:
        """Return what the model's own function gives for some samples, and the unit."""
        request, dtype = self.request, self.out.dtype
        query, key, value = (t[part].double() for t in (request.query, request.key, request.value))
        spread = request.own(query, key, value.abs(), part)
        size = _largest_logit(wide, self.seen[part])
        unit = precision.of_attention(spread, size, wide.value, dtype)
        return self._settled(wide, request.own(query, key, value, part), unit, part), unit

    def _as_defined(self, wide: Call, part: slice) -> tuple[Tensor, Tensor]:
        """Return what the variant's reference gives for some samples, and the unit."""

        def defined(tensors: dict[str, Any]) -> dict[str, Tensor]:
            return {"out": _own_reference(replace(wide, **tensors), self.variant)}

        dtype = self.out.dtype
        truth, unit = precision.noise(defined, _floats(wide), dtype)["out"]
        return truth, unit * (precision.forward_gate(dtype) / SITE_BOUND)

    def _settled(self, wide: Call, truth: Tensor, unit: Tensor, part: slice) -> Tensor:
        """Return what a model of float64 means where its own function rounds to float32 inside."""
        if self.out.dtype != torch.float64 or not self.exact:
            return truth
        meant = _own_reference(wide, self.variant)
        off = precision.worst(truth, meant, unit * precision.FLOAT32_INSIDE, self.rows[part])
        # further off it is no rounding, and whatever else it is stays the model's own
        return meant if off <= 1 else truth


class Defined:
    """A call that no model made: its own function is the definition."""

    def __init__(self, call: Call) -> None:
        self.query, self.key, self.value, self._call = call.query, call.key, call.value, call

    def call(self) -> Call:
        """Return the call."""
        return self._call

    def own(self, query: Tensor, key: Tensor, value: Tensor, samples: slice) -> Tensor:
        """Run the definition on these tensors and the call's arguments."""
        return _reference(replace(_cut(self._call, samples), query=query, key=key, value=value))


def _reference(call: Call) -> Tensor:
    """Return what softmax attention is defined as."""
    given = call.arguments()
    if call.scale is None:
        given["scale"] = call.query.shape[3] ** -0.5
    return reference.softmax(**given)


def _own_reference(call: Call, variant: Variant) -> Tensor:
    """Return what a variant says that it computes."""
    return attention(**call.arguments(), variant=variant, implementation="reference")


def _floats(call: Call) -> dict[str, Tensor]:
    named = ("query", "key", "value", "bias", "sinks")
    return {name: t for name in named if (t := getattr(call, name)) is not None}


def _like(call: Call, queries: int, keys: int) -> Call | None:
    """Return a call of other lengths, with numbers of its own; None for masks of no known kind."""
    sizes = Sizes(BATCH, call.query.shape[1], queries, keys)
    mask = _mask_like(call.mask, sizes, call.query.device)
    if mask is None:
        return None
    width = call.query.shape[3]
    # logits of about 1, whatever the scale
    scale = width**-0.5 if call.scale is None else abs(call.scale)
    query = drawn((BATCH, sizes.heads, queries, width), call.query) / ((scale or 1.0) * width**0.5)
    key = drawn((BATCH, call.key.shape[1], keys, width), call.key, seed=1)
    value = drawn((BATCH, call.value.shape[1], keys, call.value.shape[3]), call.value, seed=2)
    bias, sinks = call.bias, call.sinks
    if bias is not None:
        bias = drawn((1, sizes.heads, queries, keys), bias, seed=3)
    if sinks is not None:
        sinks = drawn(sinks.shape, sinks, seed=4)
    return replace(call, query=query, key=key, value=value, mask=mask, bias=bias, sinks=sinks,
                   dropout_p=0.0, aligned=True)  # fmt: skip


def _mask_like(mask: Mask, sizes: Sizes, device: torch.device) -> Mask | None:
    """Return a mask of the same kinds for other sizes; None where a kind cannot be made up."""
    made = masks.causal() if mask.is_causal else masks.full()
    half, widest = max(1, sizes.keys // 2), max(1, 2 * sizes.keys // 3)

    def padded() -> Mask:
        counts = [half - 1, 0, 1] if mask.is_causal else [half, sizes.keys, 1]
        pad = masks.left_padding if mask.is_causal else masks.padding
        return pad(torch.tensor(counts, device=device))

    def packed() -> Mask:
        ids = torch.arange(sizes.keys, device=device) // half
        return masks.documents(ids.expand(sizes.batch, -1))

    def scattered() -> Mask:
        like = torch.empty(0, device=device)
        return masks.dense(drawn((1, 1, sizes.queries, sizes.keys), like) < 1)

    kinds: dict[str, Callable[[], Mask]] = {
        "window": lambda: masks.sliding_window(min(mask.window or half, widest)),
        "padding": padded,
        "documents": packed,
        "dense": scattered,
    }
    for part in sorted(mask.parts):
        if part not in kinds:
            return None
        made = made & kinds[part]()
    return made


def _windowed(mask: Mask, size: int) -> Mask:
    """Narrow a mask, once for all layers if it remembers."""
    if mask.memory is None:
        return mask & masks.sliding_window(size)
    found: Mask | None = mask.memory.get(size)
    if found is None:
        found = mask.memory[size] = (mask & masks.sliding_window(size)).remembering()
    return found


def _parts(sizes: Sizes) -> Iterator[slice]:
    """Cut the batch so that a float64 run of a part stays small."""
    step = max(1, _ELEMENTS // max(1, sizes.heads * sizes.queries * sizes.keys))
    starts = range(0, sizes.batch, step)
    yield from (slice(start, min(start + step, sizes.batch)) for start in starts)


def _cut(call: Call, part: slice) -> Call:
    """Return some samples of a call, in float64; what differs by sample becomes a dense mask."""
    sizes = sizes_of(call)
    mask = call.mask
    if part != slice(0, sizes.batch):
        mask = masks.full()
        for each in call.mask.conjuncts():
            one = (
                masks.dense(each.to_bool(sizes, call.query.device)[part])
                if each.per_batch
                else each
            )
            mask = mask & one
    bias = call.bias
    if bias is not None:
        bias = bias.double()
        bias = bias[part] if bias.dim() == 4 and bias.shape[0] > 1 else bias
    return replace(
        call,
        query=call.query[part].double(),
        key=call.key[part].double(),
        value=call.value[part].double(),
        mask=mask,
        bias=bias,
        sinks=None if call.sinks is None else call.sinks.double(),
    )


def _largest_logit(call: Call, seen: Tensor) -> Tensor:
    """Return a bound on the logits of every row, (b, H, L); of some samples, in float64.

    Args:
        call: The samples.
        seen: (b, 1 or H, L, S), which keys are visible.
    """
    query, key = call.query, call.key
    batch, heads, length, width = query.shape
    grouped = query.abs().reshape(batch, key.shape[1], -1, length, width)
    logits = grouped @ key.abs()[:, :, None].transpose(-1, -2)  # (b, Hkv, H / Hkv, L, S)
    scale = width**-0.5 if call.scale is None else abs(call.scale)
    logits = logits.reshape(batch, heads, length, -1) * scale
    if call.bias is not None:
        logits = logits + call.bias.abs().nan_to_num(posinf=0.0)
    sigma = logits.masked_fill(~seen, 0.0).amax(dim=-1)  # (b, H, L)
    return sigma if call.sinks is None else torch.maximum(sigma, call.sinks.abs()[:, None])


def _supposed(assignment: Assignment, training: bool) -> SoftmaxProblem:
    site, needs = assignment.site, assignment.site.needs
    width = needs.head_dim or 64
    windows = [w for w in (needs.window, assignment.window_size) if w is not None]
    return SoftmaxProblem(
        device=site.device,
        dtype=site.dtype,
        # as little as there can be: `swap` sees the rest
        heads=needs.heads or 1,
        kv_heads=needs.kv_heads or needs.heads or 1,
        query_length=LENGTH,
        key_length=2 * LENGTH if needs.cross else LENGTH,
        head_dim=width,
        value_head_dim=width,
        causal=bool(needs.causal),
        mask_parts=frozenset({"window"}) if windows else frozenset(),
        window=min(windows, default=None),
        bias=needs.bias,
        scale=needs.scale is not None and needs.scale != width**-0.5,
        softcap=needs.softcap is not None,
        sinks=needs.sinks,
        dropout=training and needs.dropout > 0,
    )


def _mixer(model: nn.Module, host: Host, assignment: Assignment) -> Running:
    options, window_size = assignment.options, assignment.window_size
    return Running(assignment.variant, options.implementation, options.fallback, window_size)


FAMILY = SwapFamily(obstacles=beyond_attention, supposed=_supposed, mixer=_mixer)
