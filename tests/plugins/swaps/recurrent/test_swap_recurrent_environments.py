"""Models with recurrences where models live: under autocast, sharded, saved, trained.

Where numbers are compared the model is in float64, so that 1e-9 lies far above rounding and far
below any mistake; see test_swap_recurrent.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_llama import build, furthest_of, gradients, logits
from tiny_models import CLOSE, furthest
from torch.distributed.fsdp import fully_shard

import attnkit

PLANS = ("linear", "gated_linear", "state_space")


def swapped(plan: str, dtype: torch.dtype = torch.float64) -> Any:
    """Return a model that stays swapped, always with the same new parameters."""
    model = build(dtype)
    attnkit.swap(model, plan, accept="different")
    return model


@pytest.fixture(params=PLANS)
def plan(request: Any) -> str:
    found: str = request.param
    return found


def test_autocast_stays_as_close_as_a_model_in_half_precision(plan: str) -> None:
    exact = logits(swapped(plan, torch.float32))
    halved = furthest(exact, logits(swapped(plan, torch.bfloat16)).float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = logits(swapped(plan, torch.float32)).float()
    assert furthest(exact, found) < 2 * halved


def test_state_dict_goes_from_one_swapped_model_into_another(plan: str) -> None:
    one, other = swapped(plan), swapped(plan)
    for parameter in one.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    other.load_state_dict(one.state_dict())
    assert torch.equal(logits(one), logits(other))


def test_state_dict_without_the_swap_lacks_the_new_parameters_alone(plan: str) -> None:
    one, other = build(), swapped(plan)
    missing, unexpected = other.load_state_dict(one.state_dict(), strict=False)
    assert unexpected == []
    assert all(".attnkit." in name for name in missing)


def test_training_steps_lead_to_the_same_weights_with_checkpointing_and_without(plan: str) -> None:
    def train(*, checkpointed: bool) -> dict[str, torch.Tensor]:
        model = swapped(plan).train()
        if checkpointed:
            model.activation_checkpointing_enable({"use_reentrant": False})
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        for _ in range(3):
            gradients(model)
            optimizer.step()
        return {name: each.detach() for name, each in model.named_parameters()}

    before = {name: each.detach() for name, each in swapped(plan).named_parameters()}
    after = train(checkpointed=False)
    assert furthest_of(before, after) > 1e-6
    assert furthest_of(after, train(checkpointed=True)) < CLOSE


@pytest.mark.parametrize("plan", PLANS)
def test_swapped_model_can_be_sharded(plan: str, mesh: Any) -> None:
    wanted, model = gradients(swapped(plan)), swapped(plan)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert furthest_of(wanted, gradients(model)) < CLOSE


def test_swap_made_in_inference_mode_can_be_trained_outside_of_it() -> None:
    model = build()
    with torch.inference_mode():
        attnkit.swap(model, {"*.self_attn": "gated_linear"}, accept="different")
    assert [name for name, each in model.named_parameters() if each.is_inference()] == []
    assert all(bool(each.isfinite().all()) for each in gradients(model).values())
