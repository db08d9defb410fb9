"""A unit that is estimated from few probes is doubted before a result is red."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

import attnkit
import attnkit_contracts
from attnkit import precision
from attnkit_contracts.definitions import oracle
from attnkit_contracts.judging import outputs as judging
from attnkit_contracts.judging import units
from attnkit_contracts.judging.outputs import Bound, agree, estimated, near, part

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def _estimated(unit: float, better: float, asked: list[float]) -> Bound:
    def again() -> torch.Tensor:
        asked.append(better)
        return torch.tensor([[better]])

    return Bound(torch.zeros(2, 3), torch.tensor([[unit]]), 3.0, "probe units", again)


@pytest.mark.parametrize(
    ("unit", "better", "error", "expected", "asks"),
    [
        (1.0, 2.0, 2.0, 2.0, 0),  # within the gate: nothing to doubt
        (1.0, 2.0, 4.0, 2.0, 1),  # beyond it by chance
        (1.0, 1.1, 4.4, 4.0, 1),  # beyond it
        (1.0, 2.0, 30.0, 30.0, 0),  # far beyond it
    ],
)
def test_an_error_just_beyond_the_gate_is_measured_with_more_probes(
    unit: float, better: float, error: float, expected: float, asks: int
) -> None:
    asked: list[float] = []
    limit, got = _estimated(unit, better, asked), torch.zeros(2, 3)
    got[1, 2] = error
    assert near(limit, got).value == pytest.approx(expected)
    assert near(part(limit, (slice(1, 2),)), got[1:2]).value == pytest.approx(expected)
    assert len(asked) == 2 * asks
    # two outputs may each be off by the gate
    other = -got
    assert agree(limit, got, other).value == pytest.approx(2 * expected)


def test_a_right_layer_is_not_red_for_four_probes_that_lie_close() -> None:
    variant = attnkit.get_variant("gated_linear")
    (instance,) = (
        each
        for each in attnkit_contracts.plan(
            variant, implementations=["layer"], dtypes=["bfloat16"], seed=1, tier="standard"
        )
        if each.check.id == "T7.option_steps"
    )
    # four probes say 7.4 units of 6 allowed
    assert instance.run(explain=False).status == "passed"


def test_all_results_of_one_estimate_are_estimated_again_at_once() -> None:
    asked: list[int] = []

    def estimate(probes: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        asked.append(probes)
        unit = torch.tensor([float(probes)])
        return {"one": (torch.zeros(2), unit), "other": (torch.ones(2), 2 * unit)}

    limits = estimated(estimate, 3.0, 4)
    assert asked == [4]
    assert near(limits["one"], torch.full((2,), 16.0)).value == 16 / 32
    assert near(limits["other"], torch.full((2,), 33.0)).value == 32 / 64
    assert asked == [4, 32]


@pytest.mark.parametrize(
    ("variant", "implementation", "dtype", "check"),
    [
        ("linear", "chunked", "bfloat16", "N2.recurrence_backward"),
        ("linear", "chunked", "bfloat16", "T4.recurrent_state"),
        ("linear", "chunked", "bfloat16", "N1.recurrence_combinations"),
        ("linear", "layer", "float32", "N5.autocast_layer"),
        ("moe", "layer", "bfloat16", "N1.mixture"),
        ("moe", "layer", "bfloat16", "N2.mixture"),
        ("moe", "layer", "bfloat16", "F7.losses"),
    ],
)
def test_units_of_every_kind_are_estimated_again(
    variant: str,
    implementation: str,
    dtype: str,
    check: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(units, "whole_noise", _unlucky(units.whole_noise))
    monkeypatch.setattr(judging, "FAR", float("inf"))

    def status() -> str:
        instance = next(
            each
            for each in attnkit_contracts.plan(
                attnkit.get_variant(variant),
                implementations=[implementation],
                dtypes=[dtype],
                tier="standard",
            )
            if each.check.id == check
        )
        return instance.run(explain=False).status

    assert status() == "passed"
    monkeypatch.setattr(judging, "BETTER", 1)
    assert status() == "failed"


def _unlucky(noise: Callable[..., Any]) -> Callable[..., Any]:
    """Return an estimate that is far too low where it is of few probes."""

    def wrong(*given: Any, probes: int, **named: Any) -> Any:
        low = 2.0**24 if probes <= precision.PROBES else 1
        return tuple(
            {name: (exact, unit / low) for name, (exact, unit) in each.items()}
            for each in noise(*given, probes=probes, **named)
        )

    return wrong


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_a_probability_that_underflows_is_no_error(dtype: str) -> None:
    """Torch's exp gives 0 below the normal numbers; a gradient of the value is that times g."""
    wide = torch.float64 if dtype == "float64" else torch.float32
    tiny = torch.finfo(wide).tiny
    query = torch.tensor([1.0, 1.0], dtype=torch.float64).reshape(1, 1, 2, 1)
    logit = math.log(1.4 * tiny)
    # the second key is all but hidden from both queries
    key = torch.tensor([0.0, logit], dtype=torch.float64).reshape(1, 1, 2, 1)
    value = torch.ones(1, 1, 2, 1, dtype=torch.float64)
    exact = oracle.softmax(query, key, value, mask=attnkit.full(), scale=1.0)
    assert 0 < float(exact.weights[0, 0, 0, 1]) < 2 * tiny
    given, grad_out = {"query": query, "key": key, "value": value}, torch.ones_like(query)
    unit = units.analytic_gradients(exact, given, grad_out, 1.0, getattr(torch, dtype))["value"]
    flushed = 2 * exact.weights[0, 0, 0, 1]
    assert float(flushed / unit[0, 0, 1, 0]) <= units.ANALYTIC_GATE


def selects(given: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Keep the two largest numbers of a row, and add the largest."""
    x = given["x"]
    least = x.topk(2, -1).values[..., -1:]
    return {"out": torch.where(x >= least, x, 0.0).sum(-1) + x.amax(-1)}


def test_what_only_moves_numbers_is_off_by_nothing() -> None:
    x = torch.linspace(-3, 3, 64, dtype=torch.float64).reshape(8, 8)
    grads = {"out": torch.ones(8, dtype=torch.float64)}
    found, gradients = units.whole_noise(selects, {"x": x}, grads, torch.float32, rounds=True)
    out, gradient = found["out"][1], gradients["x"][1]

    # else the largest would be none of the row, and the second largest would come and go
    assert gradient.isfinite().all()
    assert float(gradient.max()) < 1e-6
    assert float((out / x.abs().amax()).max()) < 1e-6
