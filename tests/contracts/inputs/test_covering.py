"""Every two values of two factors meet, in few rows, the same ones every time."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest

import attnkit
from attnkit_contracts.inputs import factors
from attnkit_contracts.inputs.cover import cover, met

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
    assert set().union(*map(pairs, cover(FACTORS))) == all_pairs(FACTORS)


def test_rows_are_few_and_the_same_every_time() -> None:
    rows = cover(FACTORS)

    # 12 are the least: 4 values times 3
    assert 12 <= len(rows) <= 16
    assert rows == cover(FACTORS)


def test_what_does_not_fit_is_in_no_row_and_all_else_meets() -> None:
    def fits(row: Mapping[str, Any]) -> bool:
        return (row.get("a"), row.get("b")) != (4, "z")

    rows = cover(FACTORS, fits)

    assert all(fits(row) for row in rows)
    met = set().union(*map(pairs, rows))
    assert all_pairs(FACTORS) - met == {(("a", 4), ("b", "z"))}


def test_a_variant_that_promises_no_option_has_one_value_of_each() -> None:
    plain = attnkit.get_variant("self_attention").promises

    found = factors.softmax_factors(plain.model_copy(update={"scale": False, "masks": ()}))

    assert found["heads"] == ((1, 1),)
    assert [found[name] for name in ("bias", "scale", "sinks")] == [("none",), (1,), ("none",)]
    assert factors.recurrence_factors(plain)["beta"] == (None,)


def test_once_each_takes_as_many_rows_as_the_longest_list() -> None:
    rows = cover(FACTORS, strength=1)

    assert len(rows) == 4
    assert all({row[name] for row in rows} == set(values) for name, values in FACTORS.items())


def test_every_three_values_meet_where_they_are_asked_to() -> None:
    rows = cover(FACTORS, strength=3)
    wanted = [
        dict(zip(names, values, strict=True))
        for names in itertools.combinations(FACTORS, 3)
        for values in itertools.product(*(FACTORS[name] for name in names))
    ]

    assert [each for each in wanted if not any(met(each.items(), row) for row in rows)] == []


def test_what_is_named_comes_together_as_far_as_it_is_there() -> None:
    named: dict[str, Any] = {"a": 3, "b": "z", "d": 5}
    rows = cover(FACTORS, strength=1, meetings=[named, {"a": 7, "b": "x"}, {"other": 1}])

    assert any(met(named.items(), row) for row in rows)
    assert {row["a"] for row in rows} == {1, 2, 3, 4}


ROWS: dict[str, tuple[Any, Any, Any]] = {
    "softmax": (
        factors.softmax_factors(attnkit.get_variant("flash").promises),
        lambda strength: factors.softmax_rows(
            attnkit.get_variant("flash").promises, strength, exact=True
        ),
        factors.fits_softmax,
    ),
    "recurrence": (
        factors.recurrence_factors(attnkit.get_variant("gated_linear").promises),
        lambda strength: factors.recurrence_rows(
            attnkit.get_variant("gated_linear").promises, strength
        ),
        factors.fits_recurrence,
    ),
}


def test_every_value_of_a_mixture_is_tried() -> None:
    rows = factors.mixture_rows()

    assert all({row[n] for row in rows} == set(some) for n, some in factors.MIXTURE.items())


@pytest.mark.parametrize("family", ROWS)
def test_every_value_is_tried_and_every_two_that_fit_come_together(family: str) -> None:
    values, rows, fits = ROWS[family]

    assert all({row[name] for row in rows(1)} == set(some) for name, some in values.items())
    together = set().union(*map(pairs, rows(2)))
    left_out = {
        pair
        for pair in all_pairs(values) - together
        # whose gradients are rounding alone
        if fits(dict(pair)) and ("scale", 300) not in pair
    }
    # what fits by itself, and in no call with all else
    assert len(left_out) <= len(together) / 20
