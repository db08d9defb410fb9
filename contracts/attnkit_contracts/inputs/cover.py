"""Which values of which options to try together, so that every two of them meet.

Most mistakes of combinations are mistakes of two: a bias for one head count, a window for one
query. All combinations of ten options are thousands; so few that every two values of two options
occur together are as many as the two longest lists have pairs; so few that every value occurs at
all are as many as the longest list has. What is known to go wrong beyond that is named.

Source: Cohen et al. 1997, https://doi.org/10.1109/32.605761, the greedy construction; ours is
deterministic.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

    Factors = Mapping[str, Sequence[Hashable]]
    Fits = Callable[[Mapping[str, Any]], bool]
    Row = dict[str, Any]
    Some = tuple[tuple[str, Hashable], ...]


def cover(
    factors: Factors,
    fits: Fits = lambda _: True,
    *,
    strength: int = 2,
    meetings: Iterable[Mapping[str, Hashable]] = (),
) -> list[Row]:
    """Return rows with one value of every factor, in which every two values occur together.

    Args:
        factors: The values of each, by name.
        fits: Whether a row, or the beginning of one with some factors only, is allowed; what it
            refuses it must refuse with further factors too. Values that no row that is found can
            hold together are left out.
        strength: How many values of different factors occur together: 1, 2 or 3.
        meetings: Further values that occur together, as far as the factors have them.
    """
    names = list(factors)
    named = (tuple((name, row[name]) for name in names if name in row) for row in meetings)
    missing: dict[Some, None] = {
        some: None for some in named if all(value in factors[name] for name, value in some)
    }
    for together in itertools.combinations(names, strength):
        for values in itertools.product(*(factors[name] for name in together)):
            missing[tuple(zip(together, values, strict=True))] = None
    rows = []
    while missing:
        first = next(iter(missing))
        row = _completed(dict(first), factors, missing, fits, strength)
        del missing[first]
        if row is not None:
            rows.append(row)
            for some in [each for each in missing if met(each, row)]:
                del missing[some]
    return rows


def met(some: Iterable[tuple[str, Hashable]], row: Mapping[str, Any]) -> bool:
    """Return whether a row has all of these values."""
    return all(row[name] == value for name, value in some)


def _completed(
    row: Row, factors: Factors, missing: Mapping[Some, None], fits: Fits, strength: int
) -> Row | None:
    """Give every further factor the value that makes most missing values meet."""
    if not fits(row):
        return None
    names = list(factors)
    for turn, name in enumerate(name for name in names if name not in row):
        values = factors[name]
        # of equally good values another one every time, so that more than two are mixed too
        start = (len(missing) + turn) % len(values)
        allowed = [
            value for value in (*values[start:], *values[:start]) if fits({**row, name: value})
        ]
        if not allowed:
            return None
        beside = [known for known in names if known in row]
        chosen = max(
            allowed, key=lambda value: _new(row, beside, (name, value), missing, strength, names)
        )
        row = {**row, name: chosen}
    return {name: row[name] for name in names}


def _new(
    row: Row,
    beside: list[str],
    added: tuple[str, Hashable],
    missing: Mapping[Some, None],
    strength: int,
    names: list[str],
) -> int:
    """Return how many missing ones a value makes meet."""
    count = 0
    for others in itertools.combinations(beside, strength - 1):
        some = [*((name, row[name]) for name in others), added]
        count += tuple(sorted(some, key=lambda each: names.index(each[0]))) in missing
    return count
