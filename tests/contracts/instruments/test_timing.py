"""The rule of speed on simulated times: no clock runs here."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from attnkit_contracts.instruments.clock import FEWEST, MOST, Ratio, compare, ratio_of

if TYPE_CHECKING:
    from collections.abc import Callable

LIMIT = 1.05
TRIALS = 40


class Machine:
    """One that other work slows down: always a little, and in bursts a lot.

    Attributes:
        noise: Relative spread of undisturbed times.
        share: Of time that lies in bursts.
    """

    def __init__(self, seed: int, noise: float = 0.02, share: float = 0.0) -> None:
        self.random = random.Random(seed)
        self.noise, self.share = noise, share
        self.left, self.burst = 0, False

    def runs(self, seconds: float) -> Callable[[], float]:
        return lambda: seconds * self._slower()

    def _slower(self) -> float:
        if self.left == 0:
            self.burst = self.random.random() < self.share
            self.left = self.random.randint(5, 25)
        self.left -= 1
        load = self.random.uniform(1.3, 2.2) if self.burst else 1.0
        return load * (1 + abs(self.random.gauss(0, self.noise)))


@pytest.mark.parametrize("share", [0.0, 0.5], ids=["idle", "bursty"])
@pytest.mark.parametrize(("true", "expected"), [(1.0, "within"), (1.1, "beyond"), (1.2, "beyond")])
def test_no_verdict_is_wrong(true: float, expected: str, share: float) -> None:
    found: Counter[str] = Counter()
    for seed in range(TRIALS):
        machine = Machine(seed, share=share)
        found[compare(machine.runs(2e-3 * true), machine.runs(2e-3), LIMIT, seed=seed).verdict] += 1

    assert set(found) <= {expected, "undecided"}
    assert found[expected] >= 0.9 * TRIALS


def test_a_ratio_at_the_limit_is_left_undecided() -> None:
    machine = Machine(0, noise=0.05)
    found = compare(machine.runs(LIMIT), machine.runs(1.0), LIMIT)

    assert found.verdict == "undecided"
    assert found.rounds == MOST


def test_what_is_clear_is_said_after_the_fewest_rounds() -> None:
    machine = Machine(0)

    assert compare(machine.runs(2.0), machine.runs(1.0), LIMIT).rounds == FEWEST


def test_the_interval_holds_the_true_ratio() -> None:
    import torch

    draw = torch.Generator().manual_seed(0)
    inside = 0
    for seed in range(TRIALS):
        machine = Machine(seed)
        times = [[run() for _ in range(80)] for run in (machine.runs(1.3), machine.runs(1.0))]
        ratio = ratio_of(times[0], times[1], draw)
        inside += ratio.low <= 1.3 <= ratio.high

    # 95 % on average; fewer than 85 % of 40 would be one case in a hundred
    assert inside >= 0.85 * TRIALS


def test_a_control_that_is_off_makes_the_machine_noisy_and_near_ratios_undecided() -> None:
    load = random.Random(0)

    def jumping(seconds: float) -> Callable[[], float]:
        return lambda: seconds * (1 + 5 * load.expovariate(1.0))

    near = compare(jumping(1.0), jumping(1.0), LIMIT)
    far = compare(jumping(20.0), jumping(1.0), LIMIT)

    assert near.is_noisy
    assert near.verdict == "undecided"
    assert far.verdict == "beyond"


def test_no_verdict_comes_of_numbers_that_are_none() -> None:
    nan = float("nan")

    assert Ratio(nan, nan, nan).against(LIMIT) == "undecided"


def test_rounds_are_in_random_order_and_the_baseline_runs_twice_in_each() -> None:
    called: list[str] = []

    def run(name: str) -> Callable[[], float]:
        return lambda: called.append(name) or 1.0  # type: ignore[func-returns-value]

    compare(run("candidate"), run("baseline"), 2.0)
    rounds = [tuple(called[at : at + 3]) for at in range(0, len(called), 3)]

    assert {tuple(sorted(each)) for each in rounds} == {("baseline", "baseline", "candidate")}
    assert len(set(rounds)) == 3
