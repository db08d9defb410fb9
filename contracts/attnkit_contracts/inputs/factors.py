"""Which options and sizes calls have, which of their values are tried, and which come together.

A factor is an option or a size of a call, its values are named here; the checks of combinations
(`checks.numerics.combinations`, `checks.experts.mixtures`) make calls of them. In the fast tier
every value occurs, and what `meetings` names occurs together; in the standard tier every two
values do. The page "What is covered together" in the reference is made of this module.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any, TypeVar, cast

from attnkit_contracts.inputs.cover import cover

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from attnkit.promises import Promises

    Factors = dict[str, tuple[Any, ...]]
    Row = Mapping[str, Any]

F = TypeVar("F")

LOGITS, NUMBERS, STATES = 30_000, 260_000, 150_000
"""The most logits, numbers in query, key and value, and numbers in all L states of a recurrence,
of one combination: what keeps the checks cheap."""

FEW = 80_000
"""The most numbers in the fast tier."""

FAR, TALL = (2, 1100), (257, 257)
"""Many keys, of two queries or of as many as there are keys."""


def _once(function: F) -> F:
    """Remember answers; promises have a hash, which pydantic tells no type checker."""
    return cast("F", functools.cache(cast("Callable[..., Any]", function)))


def softmax_factors(promises: Promises, *, exact: bool = True) -> Factors:
    """Return the values of every factor that the promises allow, plain ones first.

    Where the weights are not softmax's, nothing is so large that one of them is all there is.
    """
    lengths = [(33, 33), (5, 5), (1, 1), (128, 128), (150, 150), TALL]
    if promises.cross:
        # whose queries stand at keys has no more queries than keys
        by_key = {"documents", "blocks"} & set(promises.needs)
        lengths += [(1, 70), (33, 70), (9, 260), FAR]
        lengths += [] if by_key else [(70, 33), (130, 33)]
    heads = [(1, 1)]
    if promises.heads == "many":
        heads += [(3, 3), (12, 12), (40, 40)]
        heads += [(6, 3), (6, 2), (16, 1)] if promises.gqa else []
    widths = [(8, 8), (24, 24), (64, 64), (72, 72), (100, 100), (128, 128), (192, 192), (260, 260)]
    if promises.value_width:
        widths = [(8, 24), (24, 8), (64, 64), (72, 40), (100, 100), (128, 64), (192, 128),
                  (260, 8), (8, 132)]  # fmt: skip
    large = exact
    return {
        "mask": tuple(_masks(promises)),
        "widths": tuple(widths),
        "lengths": tuple(lengths),
        "heads": tuple(heads),
        "batch": (3, 1, 5, 65),
        "bias": ("none", "full", "of heads", "large", "zero", *["constant rows"] * large)
        if promises.bias
        else ("none",),
        # times the default, unless it is said; "default" says it
        "scale": (1, 0, -1, 4, "default", "one", *[300] * large) if promises.scale else (1,),
        "softcap": (None, 1.5, 1.0, 200.0) if promises.softcap else (None,),
        "sinks": ("none", "drawn", "zero", *["0 and 100"] * large) if promises.sinks else ("none",),
    }


def _masks(promises: Promises) -> Iterator[str]:
    """Yield ways and parts: all parts beside one way, the plain mask of the other."""
    ways = [way for way in ("causal", "bidirectional") if getattr(promises, way)]
    yield from ways
    for part in promises.masks:
        # a prefix shows nothing beside causal; what a variant needs, every mask of it has
        way = "bidirectional" if part == "prefix" else ways[0]
        made = part != "union" or {"window", "dense"} <= set(promises.masks)
        if part not in promises.needs and way in ways and made:
            yield f"{way}+{part}"


def softmax_meetings(factors: Factors) -> Iterator[Row]:
    """Yield what occurs together in every tier."""
    far = FAR if FAR in factors["lengths"] else TALL
    for mask in factors["mask"]:
        yield {"lengths": far, "mask": mask}
        if mask.endswith("+padding"):
            # one number of samples and of tokens: which axis is which shows in the mask alone
            yield {"lengths": (5, 5), "batch": 5, "mask": mask}
    plain = factors["mask"][0]
    # as many heads as tokens, or more
    yield {"lengths": (5, 5), "heads": (12, 12), "sinks": "drawn", "mask": plain}
    yield {"lengths": (1, 1), "heads": (3, 3), "sinks": "drawn", "mask": plain}
    yield {"heads": (1, 1), "batch": 1, "bias": "full"}
    yield {"scale": 300, "softcap": 1.5}
    # queries begin beyond the first tile of keys, or end before it
    yield {"lengths": (9, 260), "mask": "causal"}
    yield {"lengths": (130, 33), "mask": "causal"}


def fits_softmax(row: Row) -> bool:
    """Return whether a call is cheap, and its mask has what it needs."""
    batch, (heads, _) = row.get("batch", 1), row.get("heads", (1, 1))
    queries, keys = row.get("lengths", (1, 1))
    by_key = row.get("mask", "").endswith(("documents", "blocks"))
    rows = batch * heads
    numbers = rows * (queries + keys) * sum(row.get("widths", (1, 1)))
    cheap = rows * queries * keys <= LOGITS or (rows == 1 and (queries, keys) == TALL)
    return cheap and numbers <= NUMBERS and not (by_key and queries > keys)


def _shown(row: Row) -> bool:
    """Return the same for the fast tier; what occurs once is not hidden by logits of 0.

    Nor by those that leave all weight to one key.
    """
    batch, (heads, _) = row.get("batch", 1), row.get("heads", (1, 1))
    queries, keys = row.get("lengths", (1, 1))
    numbers = batch * heads * (queries + keys) * sum(row.get("widths", (1, 1)))
    plain = row.get("widths", (8, 8))[0] == 8 and row.get("lengths", (33, 33)) == (33, 33)
    shows = row.get("scale", 1) not in (0, 4, 300) or plain
    return fits_softmax(row) and numbers <= FEW and shows


@_once
def softmax_rows(promises: Promises, strength: int, *, exact: bool) -> list[Row]:
    """Return the combinations that are tried."""
    factors = softmax_factors(promises, exact=exact)
    if strength > 1:
        # of weights that are 0 or 1, gradients are rounding alone
        factors["scale"] = tuple(scale for scale in factors["scale"] if scale != 300)
    meetings = softmax_meetings(factors)
    fits = _shown if strength == 1 else fits_softmax
    return list(cover(factors, fits, strength=strength, meetings=meetings))


def recurrence_factors(promises: Promises) -> Factors:
    """Return the values of every factor that the promises allow, plain ones first."""
    groups = [(1, 1), (3, 3), (12, 12), (20, 20)]
    groups += [(6, 3), (6, 2), (16, 1)] if promises.gqa else []
    widths = [(8, 8), (24, 24), (40, 40), (130, 130)]
    if promises.value_width:
        widths = [(8, 24), (24, 8), (40, 72), (100, 16), (192, 8), (260, 8)]
    # a gate beyond 1 overshoots, as one below 0 does: the definition has no bounds
    beta: tuple[Any, ...] = ()
    if promises.beta:
        beta = ((0, 1), (-0.5, 2), "zero", "one", "0 and 1")
    parts = [part for part in promises.masks if part not in promises.needs]
    masks = [part for part in parts if part in ("padding", "documents")]
    decays = promises.decay or ("none",)
    return {
        "widths": tuple(widths),
        "groups": tuple(groups),
        "length": (20, 50, 150, 300, 1, 3) if promises.state else (20, 50, 150, 300),
        "batch": (2, 1, 20, 65),
        "decay": decays,
        "rates": ("drawn",) if decays == ("none",) else ("drawn", "zero", "0 to -100"),
        "beta": (None, *beta),
        "scale": (1, 0, -1, 4, "one") if promises.scale else (1,),
        "state": ("none", "drawn", "zero", "large") if promises.state else ("none",),
        "mask": ("none", *masks),
    }


def recurrence_meetings(factors: Factors) -> Iterator[Row]:
    """Yield what occurs together in every tier."""
    # one number of samples and of tokens, and more heads than tokens
    yield {"length": 20, "batch": 20}
    for decay, mask in zip(factors["decay"], reversed(factors["mask"]), strict=False):
        yield {"length": 3, "groups": (12, 12), "decay": decay, "rates": "drawn"}
        yield {"length": 150, "decay": decay, "mask": mask}


def fits_recurrence(row: Row) -> bool:
    """Return whether a call is cheap, and has gradients that are more than rounding."""
    sizes = (row.get("batch", 1), row.get("groups", (1, 1))[0], row.get("length", 1))
    # a lone token without a state may have gradients that are 0 but for rounding: no unit fits
    lone = row.get("length", 20) < 20 and row.get("state", "drawn") in ("none", "zero")
    undecayed = row.get("decay") == "none" and row.get("rates", "drawn") != "drawn"
    cheap = math.prod((*sizes, *row.get("widths", (1, 1)))) <= STATES
    return cheap and not lone and not undecayed


def _heard(row: Row) -> bool:
    """Return the same; and what occurs once is not hidden by outputs of 0, or by a sum that grows.

    Where a gate of more than 1 overshoots again and again, rounding does too.
    """
    plain = {"length": 20, "groups": (1, 1), "rates": "drawn"}
    silent = row.get("scale") == 0, row.get("beta") == "zero"
    hidden = all(silent) or (any(silent) and any(row.get(n, v) != v for n, v in plain.items()))
    grows = row.get("beta") == (-0.5, 2) and row.get("length", 20) > 20
    return fits_recurrence(row) and not hidden and not grows


@_once
def recurrence_rows(promises: Promises, strength: int) -> list[Row]:
    """Return the combinations that are tried."""
    factors = recurrence_factors(promises)
    meetings = recurrence_meetings(factors)
    fits = _heard if strength == 1 else fits_recurrence
    return list(cover(factors, fits, strength=strength, meetings=meetings))


MIXTURE: Factors = {
    "experts": (4, 5, 33, 130),
    "top_k": (2, 1, 3, 8, "all"),
    "renormalise": (True, False),
    # of one row; as many as there are experts, or as a token is wide
    "tokens": (24, 1, 300, "experts", "width"),
    "widths": ((32, 24), (20, 130), (132, 12)),
    "logits": ("drawn", "large"),
    "size": (1, 100),
}
"""The values of the factors of a mixture of experts; ``widths`` are D and F."""


def fits_mixture(row: Row) -> bool:
    """Return whether a call is cheap, and there are as many experts as are chosen."""
    experts, top_k, tokens = row.get("experts", 4), row.get("top_k", 1), row.get("tokens", 1)
    if top_k == "all" or tokens == 300:
        return bool(experts < 33 and not (top_k == "all" and tokens == 300))
    return bool(top_k <= experts)


def _quick(row: Row) -> bool:
    """Return the same, and that few of many experts have tokens."""
    many = row.get("experts", 4) == 130
    few = not many or row.get("tokens", 24) == 24
    # of large logits, the first two leave nothing to the others
    shows = row.get("logits", "drawn") == "drawn" or row.get("top_k", 1) in (1, 2)
    return fits_mixture(row) and few and shows


MIXTURE_MEETINGS: tuple[Row, ...] = (
    {"experts": 130, "top_k": 8},
    {"experts": 33, "tokens": "experts"},
    {"tokens": 1, "top_k": 3},
    {"top_k": 1, "renormalise": True, "size": 1},
    {"top_k": 1, "renormalise": False},
)
"""What occurs together in every tier."""


@_once
def mixture_rows() -> list[Row]:
    """Return the combinations that are tried, in every tier the same."""
    return list(cover(MIXTURE, _quick, strength=1, meetings=MIXTURE_MEETINGS))
