"""Ratios of run times, taken side by side.

All competitors run once per round, in shuffled order; a ratio is the median of the per-round
ratios. A control (the same function twice) must come out at 1; a run whose control is off says so.
On a CPU with one thread what counts is that thread's CPU time, which neighbours do not change.
"""

from __future__ import annotations

import random
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

CONTROL = "control"
TOLERANCE = 0.03


@dataclass(frozen=True)
class Ratio:
    """How many times as long as the baseline something ran."""

    low: float
    median: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Comparison:
    """Quartiles of the ratios to the baseline, and the baseline's median time in seconds."""

    baseline: str
    seconds: float
    ratios: Mapping[str, Ratio]

    @property
    def is_sound(self) -> bool:
        """True if the control came out at 1."""
        return abs(self.ratios[CONTROL].median - 1) <= TOLERANCE


def compare(
    baseline: str,
    functions: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 15,
    device: str = "cpu",
    at_least: float = 2e-3,
) -> Comparison:
    """Time all functions in shuffled rounds, each for at least ``at_least`` seconds per round."""
    contestants = {**functions, CONTROL: functions[baseline]}
    repeats = {}
    for name, function in contestants.items():
        once = _seconds(function, 1, device)
        if once < 1:
            # what the first call prepares is no part of the second
            once = _seconds(function, 1, device)
        repeats[name] = max(1, round(at_least / max(once, 1e-7)))
    shuffled = random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        order = list(contestants)
        shuffled.shuffle(order)
        for name in order:
            count = repeats[name]
            times[name].append(_seconds(contestants[name], count, device) / count)
    base = times[baseline]
    ratios = {
        name: _quartiles([mine / theirs for mine, theirs in zip(each, base, strict=True)])
        for name, each in times.items()
        if name != baseline
    }
    return Comparison(baseline, statistics.median(base), ratios)


def _seconds(function: Callable[[], object], count: int, device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(count):
            function()
        stop.record()
        torch.cuda.synchronize()
        return start.elapsed_time(stop) / 1e3
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    begun = clock()
    for _ in range(count):
        function()
    return clock() - begun


def _quartiles(ratios: list[float]) -> Ratio:
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Ratio(low, median, high)
