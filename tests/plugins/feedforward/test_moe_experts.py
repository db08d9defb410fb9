"""The implementations of the mixture of experts, for routings that are already decided."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch.nn.functional import linear, silu

from attnkit.interface import load
from attnkit_plugins.feedforward.moe import VARIANT
from attnkit_plugins.feedforward.moe.weights import ExpertWeights

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

FAST = ("loop", "grouped", "dense")
# a few roundings of the dtype, relative to the largest value
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.bfloat16: 3e-2,
    torch.float16: 4e-3,
}


def function(name: str) -> Callable[..., Tensor]:
    (found,) = (i for i in VARIANT.implementations if i.name == name)
    loaded: Callable[..., Tensor] = load(found.function)
    return loaded


def case(
    tokens: int,
    *,
    num_experts: int = 5,
    top_k: int = 2,
    width: int = 16,
    hidden: int = 24,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    wide = torch.promote_types(dtype, torch.float32)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    probabilities = normal(tokens, num_experts).to(wide).softmax(-1)
    gates, experts = probabilities.topk(top_k)
    return {
        "x": normal(tokens, width),
        "experts": experts,
        "gates": gates,
        "gate_up": normal(num_experts, 2 * hidden, width) / width**0.5,
        "down": normal(num_experts, width, hidden) / hidden**0.5,
    }


def run(
    name: str, inputs: dict[str, Tensor], call: Callable[..., Tensor] | None = None
) -> dict[str, Tensor]:
    """Return the output and all gradients; the output's gradient is the same for all names."""
    leaf = {
        key: value.clone().requires_grad_() for key, value in inputs.items() if key != "experts"
    }
    weights = ExpertWeights(leaf["gate_up"], leaf["down"])
    y = (call or function(name))(leaf["x"], inputs["experts"], leaf["gates"], weights=weights)
    generator = torch.Generator().manual_seed(1)
    y.backward(torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype))
    found = {"y": y.detach()}
    for key, value in leaf.items():
        assert value.grad is not None, key
        found[key] = value.grad
    return found


def assert_agree(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    for key, value in expected.items():
        assert found[key].dtype == value.dtype
        error = (found[key].double() - value.double()).abs().max()
        assert error <= tolerance * max(1.0, value.double().abs().max().item()), (key, error)


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("count", [1, 2, 37])
def test_outputs_and_gradients_are_those_of_the_reference(
    name: str, dtype: torch.dtype, count: int
) -> None:
    inputs = case(count, dtype=dtype)
    assert_agree(run(name, inputs), run("reference", inputs), TOLERANCE[dtype])


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize(("width", "hidden"), [(7, 5), (16, 9), (1, 1)])
def test_odd_widths_agree_with_the_reference(name: str, width: int, hidden: int) -> None:
    inputs = case(11, width=width, hidden=hidden)
    assert_agree(run(name, inputs), run("reference", inputs), 1e-5)


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize(("num_experts", "top_k"), [(1, 1), (4, 1), (4, 4), (33, 8)])
def test_any_number_of_experts_agrees_with_the_reference(
    name: str, num_experts: int, top_k: int
) -> None:
    inputs = case(9, num_experts=num_experts, top_k=top_k)
    assert_agree(run(name, inputs), run("reference", inputs), 1e-5)


@pytest.mark.parametrize("name", FAST)
def test_strided_inputs_agree_with_the_reference(name: str) -> None:
    inputs = case(8)
    expected = run("reference", inputs)
    inputs["x"] = inputs["x"].T.contiguous().T
    inputs["gate_up"] = inputs["gate_up"].transpose(1, 2).contiguous().transpose(1, 2)
    inputs["down"] = torch.stack((inputs["down"], inputs["down"]), -1)[..., 0]
    assert_agree(run(name, inputs), expected, 1e-5)


@pytest.mark.parametrize("name", ["reference", *FAST])
@pytest.mark.parametrize("chosen", [0, 2, 4])
def test_one_expert_with_all_tokens_leaves_the_others_zero_gradients(
    name: str, chosen: int
) -> None:
    inputs = case(6, top_k=1)
    inputs["experts"].fill_(chosen)
    found = run(name, inputs)
    gate, up = linear(inputs["x"], inputs["gate_up"][chosen]).chunk(2, -1)
    expected = linear(silu(gate) * up, inputs["down"][chosen]) * inputs["gates"]
    torch.testing.assert_close(found["y"], expected)
    others = [expert for expert in range(5) if expert != chosen]
    assert not found["gate_up"][others].any()
    assert not found["down"][others].any()
    assert found["down"][chosen].any()


@pytest.mark.parametrize("name", ["reference", *FAST])
@pytest.mark.parametrize("count", [1, 4])
def test_tokens_without_experts_are_zero_and_so_are_all_gradients(name: str, count: int) -> None:
    inputs = case(count)
    inputs["experts"].fill_(-1)
    inputs["gates"].zero_()
    for key, value in run(name, inputs).items():
        assert not value.any(), key


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("count", [1, 12])
def test_unused_slots_agree_with_the_reference(name: str, count: int) -> None:
    inputs = case(count, top_k=3)
    unused = torch.rand(inputs["experts"].shape, generator=torch.Generator().manual_seed(5)) < 0.5
    inputs["experts"][unused] = -1
    inputs["gates"][unused] = 0.0
    found, expected = run(name, inputs), run("reference", inputs)
    found["gates"][unused] = expected["gates"][unused] = 0.0
    assert_agree(found, expected, 1e-5)


@pytest.mark.parametrize("name", ["reference", *FAST])
def test_renumbering_the_experts_changes_nothing(name: str) -> None:
    inputs = case(13)
    order = torch.tensor([3, 0, 4, 1, 2])
    moved = dict(inputs, gate_up=inputs["gate_up"][order], down=inputs["down"][order])
    moved["experts"] = order.argsort()[inputs["experts"]]
    torch.testing.assert_close(run(name, moved)["y"], run(name, inputs)["y"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("grouped", torch.bfloat16), ("dense", torch.bfloat16), ("dense", torch.float32)],
)
def test_compiles_without_a_graph_break(name: str, dtype: torch.dtype) -> None:
    inputs = case(8, dtype=dtype)
    compiled = torch.compile(function(name), fullgraph=True, backend="aot_eager")
    found = run(name, inputs, call=compiled)
    assert_agree(found, run("reference", inputs), TOLERANCE[dtype])


@pytest.mark.parametrize("name", FAST)
def test_an_expert_that_was_not_asked_stays_unseen(name: str) -> None:
    inputs = case(6, dtype=torch.float16)
    inputs["experts"] = inputs["experts"].clone()
    inputs["experts"][:, 0], inputs["experts"][:, 1] = 0, 1
    expected = run(name, inputs)
    inputs["gate_up"][3] = 6e4
    inputs["down"][3] = 6e4
    found = run(name, inputs)
    for key, value in expected.items():
        assert torch.equal(found[key], value), key
