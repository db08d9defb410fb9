"""How long things take, side by side, on a machine that does other things too.

Every contestant runs once per round, in an order of its own, and the baseline runs twice: its
second time is the control. What is compared is the first quartile of all rounds: load only ever
adds time, so the faster runs are the ones without. How sure that is, a bootstrap over blocks of
rounds says: neighbours share a burst of load, so they are drawn together.

    statistic = q25(candidate) / q25(baseline)

Ratios are dimensionless, times are seconds.
"""

from __future__ import annotations

import math
import random
import time
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Timer = Callable[[], float]

BATCH_SECONDS = 1e-3
"""Shorter measurements are made of so many calls."""

STEP, FEWEST, MOST = 20, 40, 120
"""Rounds between two looks at the ratio; the first look; the last."""

BLOCK, DRAWS = 4, 600
"""Rounds that are drawn together, and how often as many are drawn as there are."""

CONTROL_LIMIT = 1.05
"""A control whose whole interval lies below this shows a quiet machine."""

Verdict = Literal["within", "beyond", "undecided"]


class Ratio(NamedTuple):
    """A ratio of run times, with its 95 % interval."""

    low: float
    middle: float
    high: float

    def __str__(self) -> str:
        """Say it as 1.00 [0.98, 1.03]."""
        return f"{self.middle:.3g} [{self.low:.3g}, {self.high:.3g}]"

    def widened(self, by: float) -> Ratio:
        """Return an interval that reaches further by a factor, both ways."""
        return Ratio(self.low / by, self.middle, self.high * by)

    def against(self, limit: float) -> Verdict:
        """Say on which side of a limit the whole interval lies; NaN lies on neither."""
        if self.high < limit:
            return "within"
        return "beyond" if self.low > limit else "undecided"


class Outcome(NamedTuple):
    """What a comparison came to.

    Attributes:
        verdict: Whether the ratio is within its limit.
        ratio: Candidate to baseline; wider than measured where the machine is noisy.
        control: The baseline to itself.
        rounds: How many there were.
    """

    verdict: Verdict
    ratio: Ratio
    control: Ratio
    rounds: int

    @property
    def is_noisy(self) -> bool:
        """True if the control is not known to come out at 1."""
        return self.control.against(CONTROL_LIMIT) != "within"


def compare(candidate: Timer, baseline: Timer, limit: float, *, seed: int = 0) -> Outcome:
    """Say whether a candidate takes at most ``limit`` times as long as the baseline.

    A control that does not come out at 1 is no veto: what it is off by, at worst, the ratio may be
    off by too, so its interval is widened by that.
    """
    order = random.Random(seed)
    draw = torch.Generator().manual_seed(seed)
    contestants = {"candidate": candidate, "baseline": baseline, "control": baseline}
    times: dict[str, list[float]] = {name: [] for name in contestants}
    while True:
        run_rounds(contestants, STEP, order, times)
        count = len(times["baseline"])
        if count < FEWEST:
            continue
        ratio = ratio_of(times["candidate"], times["baseline"], draw)
        control = ratio_of(times["control"], times["baseline"], draw)
        if control.against(CONTROL_LIMIT) != "within":
            ratio = ratio.widened(max(control.high, 1 / control.low))
        verdict = ratio.against(limit)
        if verdict != "undecided" or count >= MOST:
            return Outcome(verdict, ratio, control, count)


def run_rounds(
    contestants: Mapping[str, Timer],
    rounds: int,
    order: random.Random,
    times: Mapping[str, list[float]],
) -> None:
    """Time everything once per round, in random order, and put it behind earlier times."""
    names = list(contestants)
    for _ in range(rounds):
        order.shuffle(names)
        for name in names:
            times[name].append(contestants[name]())


def ratio_of(candidate: Sequence[float], baseline: Sequence[float], draw: torch.Generator) -> Ratio:
    """Return q25(candidate) / q25(baseline) and its interval, from times round by round."""
    pairs = torch.tensor([candidate, baseline], dtype=torch.float64)  # (2, rounds)
    count = pairs.shape[1]
    blocks = -(-count // BLOCK)
    starts = torch.randint(count - BLOCK + 1, (DRAWS, blocks, 1), generator=draw)
    drawn = (starts + torch.arange(BLOCK)).flatten(1)[:, :count]  # (draws, rounds)
    low, high = torch.quantile(
        _log_ratio(pairs[:, drawn]), torch.tensor([0.025, 0.975], dtype=torch.float64)
    ).tolist()
    middle = float(_log_ratio(pairs))
    return Ratio(math.exp(low), math.exp(middle), math.exp(high))


def _log_ratio(pairs: torch.Tensor) -> torch.Tensor:
    """(2, ..., rounds) -> (...), the logarithm of the ratio of first quartiles."""
    logs = torch.quantile(pairs, 0.25, dim=-1).log()
    return logs[0] - logs[1]


def timer(function: Callable[[], object], device: str, at_least: float = BATCH_SECONDS) -> Timer:
    """Return what times a function, so often in a row that it takes ``at_least`` seconds."""
    # the first call may compile or allocate
    seconds(function, 1, device)
    once = seconds(function, 1, device)
    count = max(1, math.ceil(at_least / max(once, 1e-7)))
    return lambda: seconds(function, count, device) / count


def seconds(function: Callable[[], object], count: int, device: str) -> float:
    """Return how long ``count`` calls take, in seconds."""
    if device.startswith("cuda"):
        event: Any = torch.cuda.Event
        start, stop = event(enable_timing=True), event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        for _ in range(count):
            function()
        stop.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(stop)) / 1e3
    begun = time.perf_counter()
    for _ in range(count):
        function()
    return time.perf_counter() - begun
