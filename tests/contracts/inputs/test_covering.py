"""Every two values of two factors meet, in few rows, the same ones every time."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import attnkit
from attnkit_contracts.checks.numerics.combinations import recurrence_factors, softmax_factors
from attnkit_contracts.inputs.pairwise import pairwise

if TYPE_CHECKING:
    from collections.abc import Mapping

FACTORS = {"a": (1, 2, 3, 4), "b": ("x", "y", "z"), "c": (False, True), "d": (None, 5)}


def pairs(row: Mapping[str, Any]) -> set[tuple[tuple[str, Any], ...]]:
    return set(itertools.combinations(row.items(), 2))


def all_pairs(factors: Mapping[str, tuple[Any, ...]]) -> set[tuple[tuple[str, Any], ...]]:
    return {
        ((one, a), (other, b))
        for one, other in itertools.combinations(factors, 2)
        for a in factors[one]
        for b in factors[other]
    }


def test_every_two_values_meet() -> None:
    assert set().union(*map(pairs, pairwise(FACTORS))) == all_pairs(FACTORS)


def test_rows_are_few_and_the_same_every_time() -> None:
    rows = pairwise(FACTORS)

    # 12 are the least: 4 values times 3
    assert 12 <= len(rows) <= 16
    assert rows == pairwise(FACTORS)


def test_what_does_not_fit_is_in_no_row_and_all_else_meets() -> None:
    def fits(row: Mapping[str, Any]) -> bool:
        return (row.get("a"), row.get("b")) != (4, "z")

    rows = pairwise(FACTORS, fits)

    assert all(fits(row) for row in rows)
    met = set().union(*map(pairs, rows))
    assert all_pairs(FACTORS) - met == {(("a", 4), ("b", "z"))}


def test_a_variant_that_promises_no_option_has_one_value_of_each() -> None:
    plain = attnkit.get_variant("self_attention").promises

    factors = softmax_factors(plain.model_copy(update={"scale": False, "masks": ()}))

    assert factors["heads"] == ((1, 1),)
    assert [factors[name] for name in ("bias", "scale", "sinks")] == [("none",), (1,), (False,)]
    assert recurrence_factors(plain)["beta"] == (None,)
