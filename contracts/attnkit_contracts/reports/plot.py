"""Where errors lie against their thresholds: one strip per check, one mark per subject.

A mark stands at ``value / threshold`` on a logarithmic axis, so that every check shares it: 1 is
the limit, left of it passes. Positions are percentages, so the plot fits any width unscaled.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from attnkit.promises import ALL_DTYPES

if TYPE_CHECKING:
    from attnkit_contracts.reports.records import Record, Report

LOWEST, HIGHEST = -4, 1
"""Powers of ten at the two ends of the axis; what lies beyond stands at the end."""

TOP, LANE = 5, 6
"""Pixels: the middle of the first dtype's lane, and from one lane to the next."""


class Mark(NamedTuple):
    """The largest error of one check on one subject.

    Attributes:
        x: Percent of the width.
        y: Pixels; every dtype has a lane.
        dtype: Its name, which chooses shape and colour.
        title: What it is, and how large.
        is_over: Whether it is beyond the limit.
    """

    x: float
    y: int
    dtype: str
    title: str
    is_over: bool


class Strip(NamedTuple):
    """All marks of one check; ``share`` is the largest, in units of the limit."""

    check: str
    share: float
    marks: tuple[Mark, ...]


class Tick(NamedTuple):
    """One label of the axis."""

    x: float
    text: str


def ticks() -> tuple[Tick, ...]:
    """Return the labels of the axis."""
    powers = range(LOWEST, HIGHEST + 1)
    # short enough to stand side by side on a phone
    texts = (f"1e{power}" if power < -3 else f"{10.0**power:g}" for power in powers)
    return tuple(
        Tick(position(10.0**power), text) for power, text in zip(powers, texts, strict=True)
    )


def strips(report: Report) -> tuple[Strip, ...]:
    """Return a strip for every check that measures an error, in the order of the report."""
    worst: dict[str, dict[str, Record]] = {}
    for record in report.records:
        if record.value is None or not record.threshold:
            continue
        subject = f"{record.subject}, {record.dtype}"
        of_check = worst.setdefault(record.check, {})
        before = of_check.get(subject)
        if before is None or not share(before) >= share(record):
            of_check[subject] = record
    return tuple(
        Strip(check, max(map(share, found.values())), tuple(map(_mark, found, found.values())))
        for check, found in worst.items()
    )


def share(record: Record) -> float:
    """Return value / threshold; NaN counts as infinite."""
    assert record.value is not None
    assert record.threshold
    found = record.value / record.threshold
    return math.inf if math.isnan(found) else found


def position(share: float) -> float:
    """Return where a share stands, in percent of the width."""
    if share <= 0:
        return 0.0
    power = math.inf if math.isinf(share) else math.log10(share)
    return round(100 * (min(max(power, LOWEST), HIGHEST) - LOWEST) / (HIGHEST - LOWEST), 2)


def height() -> int:
    """Return the height of a strip in pixels."""
    return 2 * TOP + LANE * (len(ALL_DTYPES) - 1)


def _mark(subject: str, record: Record) -> Mark:
    found = share(record)
    lane = ALL_DTYPES.index(record.dtype) if record.dtype in ALL_DTYPES else 0
    told = f"{subject}: {record.value:.3g} of {record.threshold:.3g} {record.unit}"
    return Mark(position(found), TOP + LANE * lane, record.dtype, told, not found <= 1)
