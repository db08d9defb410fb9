"""The definitions against numbers worked out by hand, and the units against known errors."""

from __future__ import annotations

import math

import pytest
import torch

import attnkit
from attnkit import precision
from attnkit_contracts.definitions import oracle
from attnkit_contracts.judging import units


def one_hot(*rows: tuple[float, ...]) -> torch.Tensor:
    """(rows, width) -> (1, 1, rows, width) in float64."""
    return torch.tensor(rows, dtype=torch.float64)[None, None]


def attend(**given: object) -> torch.Tensor:
    """Two queries and two keys, logits log 3 and 0, values 1 and 0."""
    query = one_hot((math.log(3), 0.0), (math.log(3), 0.0))
    key, value = one_hot((1.0, 0.0), (0.0, 1.0)), one_hot((1.0,), (0.0,))
    call = {"mask": attnkit.full(), "scale": 1.0, **given}
    return oracle.softmax(query, key, value, **call).out[0, 0, :, 0]  # type: ignore[arg-type]  # a table


def test_softmax_weighs_by_exponentials() -> None:
    assert attend().tolist() == pytest.approx([0.75, 0.75], abs=1e-15)


def test_softmax_hides_later_keys() -> None:
    assert attend(mask=attnkit.causal()).tolist() == pytest.approx([1.0, 0.75], abs=1e-15)


def test_softmax_of_a_row_that_sees_nothing_is_zero() -> None:
    hidden = torch.tensor([[False, False], [True, True]])

    assert attend(mask=attnkit.dense(hidden)).tolist() == pytest.approx([0.0, 0.75], abs=1e-15)


def test_softmax_adds_the_bias_behind_the_cap() -> None:
    cap = math.log(3)
    capped = cap * math.tanh(1.0)
    bias = torch.tensor([[0.0, capped]], dtype=torch.float64)[None, None]

    assert attend(softcap=cap, bias=bias).tolist() == pytest.approx([0.5, 0.5], abs=1e-15)


def test_softmax_counts_a_sink_in_the_denominator_only() -> None:
    sinks = torch.tensor([math.log(4)], dtype=torch.float64)

    assert attend(sinks=sinks).tolist() == pytest.approx([3 / 8, 3 / 8], abs=1e-15)


def test_softmax_heads_read_the_key_head_of_their_group() -> None:
    value = torch.arange(2.0, dtype=torch.float64).reshape(1, 2, 1, 1)
    zeros = torch.zeros(1, 4, 1, 1, dtype=torch.float64)
    out = oracle.softmax(zeros, zeros[:, :2], value, mask=attnkit.full()).out

    assert out.flatten().tolist() == [0.0, 0.0, 1.0, 1.0]


def run(beta: torch.Tensor | None, decay: torch.Tensor | None) -> list[float]:
    """Two tokens with key and query 1 and values 1 and 2."""
    ones = torch.ones(1, 1, 2, 1, dtype=torch.float64)
    value = torch.tensor([1.0, 2.0], dtype=torch.float64).reshape(1, 1, 2, 1)
    out, _ = oracle.recurrence(
        ones,
        ones,
        value,
        log_decay=decay,
        beta=beta,
        scale=1.0,
        initial_state=torch.zeros(1, 1, 1, 1, dtype=torch.float64),
    )
    return [float(each) for each in out.flatten()]


def test_a_recurrence_decays_before_it_adds() -> None:
    half = torch.full((1, 1, 2), math.log(0.5), dtype=torch.float64)

    assert run(None, half) == pytest.approx([1.0, 2.5], abs=1e-15)


def test_the_delta_rule_replaces_what_the_key_held() -> None:
    assert run(torch.ones(1, 1, 2, dtype=torch.float64), None) == [1.0, 2.0]


def test_a_mixture_of_one_expert_is_that_expert() -> None:
    x = torch.tensor([[[2.0]]], dtype=torch.float64)
    router = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    gate_up = torch.tensor([[[1.0], [3.0]], [[9.0], [9.0]]], dtype=torch.float64)
    down = torch.tensor([[[0.5]], [[9.0]]], dtype=torch.float64)
    silu = 2.0 / (1 + math.exp(-2.0))

    y = oracle.mixture(x, oracle.routing(x, router, top_k=1, renormalise=True), gate_up, down)

    assert float(y) == pytest.approx(silu * 6.0 * 0.5, abs=1e-14)


def routed(logits: list[list[float]], **given: object) -> oracle.Routed:
    """One sample whose tokens have these logits of the experts."""
    x = torch.tensor([logits], dtype=torch.float64)
    options = {"top_k": 1, "renormalise": False, **given}
    return oracle.routing(x, torch.eye(x.shape[-1]), **options)  # type: ignore[arg-type]  # a table


def test_a_capacity_serves_the_first_real_tokens() -> None:
    keep = torch.tensor([[False, True, True, True, True]])
    found = routed([[5.0, 0.0]] * 4 + [[0.0, 5.0]], capacity_factor=0.75, keep=keep)

    # ceil(0.75 * 4 * 1 / 2) = 2 of the three that choose the first expert
    assert found.experts.flatten().tolist() == [-1, 0, 0, -1, 1]
    assert (found.gates != 0).flatten().tolist() == [False, True, True, False, True]
    assert found.dropped == 1


def test_the_losses_of_a_router_of_zeros_and_of_one_that_collapsed() -> None:
    even, collapsed = routed([[0.0] * 4] * 3, top_k=2), routed([[50.0, 0.0, 0.0, 0.0]] * 3)

    assert even.experts.tolist() == [[[0, 1]] * 3]
    assert even.load_balance_loss.item() == pytest.approx(1.0, abs=1e-15)
    assert even.z_loss.item() == pytest.approx(math.log(4) ** 2, abs=1e-15)
    assert collapsed.load_balance_loss.item() == pytest.approx(4.0, abs=1e-15)
    assert collapsed.z_loss.item() == pytest.approx(50.0**2, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_the_exact_result_is_within_the_analytic_gate(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 40, 16).to(dtype) for _ in range(3))
    exact = oracle.softmax(query, key, value, mask=attnkit.causal())
    worst, _ = units.error(exact.out.to(dtype), exact.out, units.analytic(exact, value, dtype))

    # rounding is half of u at most, the unit is 2 u
    assert 0 < worst <= units.ANALYTIC_GATE / 4


def test_one_per_cent_too_much_is_far_beyond_the_gate_in_float32() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 40, 16) for _ in range(3))
    exact = oracle.softmax(query, key, value, mask=attnkit.causal())
    unit = units.analytic(exact, value, torch.float32)
    worst, _ = units.error(1.01 * exact.out, exact.out, unit)

    assert worst > 100 * units.ANALYTIC_GATE


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_infinitely_wrong(bad: float) -> None:
    zero = torch.zeros(3, dtype=torch.float64)
    value, place = units.error(torch.tensor([0.0, bad, 0.0]), zero, torch.ones_like(zero))

    assert value == math.inf
    assert place == (1,)


def test_the_probe_unit_grows_with_the_conditioning() -> None:
    inputs = {"x": torch.full((1, 1, 4), 1.0, dtype=torch.float64)}

    def unit(slope: float) -> float:
        found = precision.noise(lambda given: {"y": slope * given["x"]}, inputs, torch.float32)
        return float(found["y"][1].mean())

    # y = slope * x moves by slope * u * xi, whose root mean square is u / sqrt(3)
    u = precision.roundoff(torch.float32)
    assert unit(1000.0) == pytest.approx(1000 * u * (1 + 3**-0.5), rel=0.3)


def test_probes_in_one_call_give_the_units_of_probes_one_by_one() -> None:
    torch.manual_seed(0)
    inputs = {"x": torch.randn(2, 3, 4, dtype=torch.float64)}

    def square(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"y": given["x"] ** 2}

    apart = precision.noise(square, inputs, torch.float32)["y"]
    joined = precision.noise(square, inputs, torch.float32, together=True)["y"]

    assert all(torch.equal(one, other) for one, other in zip(apart, joined, strict=True))
