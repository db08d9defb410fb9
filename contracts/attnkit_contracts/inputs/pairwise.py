"""Which values of which options to try together, so that every two of them meet.

Most mistakes of combinations are mistakes of two: a bias for one head count, a window for one
query. All combinations of ten options are thousands; so few that every two values of two options
occur together are as many as the two longest lists have pairs.

Source: Cohen et al. 1997, https://doi.org/10.1109/32.605761, the greedy construction; ours is
deterministic.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    Row = dict[str, Any]
    Pair = tuple[tuple[str, Hashable], tuple[str, Hashable]]


def pairwise(
    factors: Mapping[str, Sequence[Hashable]],
    fits: Callable[[Mapping[str, Any]], bool] = lambda _: True,
) -> list[Row]:
    """Return rows with one value of every factor, in which every two values occur together.

    Args:
        factors: The values of each, by name.
        fits: Whether a row, or the beginning of one with some factors only, is allowed; what it
            refuses it must refuse with further factors too. Two values that no row that is found
            can hold are left out.
    """
    names = list(factors)
    missing: dict[Pair, None] = {
        ((one, a), (other, b)): None
        for one, other in itertools.combinations(names, 2)
        for a in factors[one]
        for b in factors[other]
    }
    rows = []
    while missing:
        first = next(iter(missing))
        row = _completed(dict(first), factors, missing, fits)
        del missing[first]
        if row is not None:
            rows.append(row)
            for pair in _pairs(row, names):
                missing.pop(pair, None)
    return rows


def _completed(
    row: Row,
    factors: Mapping[str, Sequence[Hashable]],
    missing: Mapping[Pair, None],
    fits: Callable[[Mapping[str, Any]], bool],
) -> Row | None:
    """Give every further factor the value that makes most missing pairs."""
    if not fits(row):
        return None
    names = list(factors)
    for turn, name in enumerate(name for name in names if name not in row):
        values = factors[name]
        # of equally good values another one every time, so that triples are mixed too
        start = (len(missing) + turn) % len(values)
        allowed = [
            extended
            for value in (*values[start:], *values[:start])
            if fits(extended := {**row, name: value})
        ]
        if not allowed:
            return None
        row = max(allowed, key=lambda each: sum(p in missing for p in _pairs(each, names)))
    return {name: row[name] for name in names}


def _pairs(row: Row, names: list[str]) -> list[Pair]:
    """Return all pairs of a row's values, in the order of the factors."""
    present = [(name, row[name]) for name in names if name in row]
    return list(itertools.combinations(present, 2))
