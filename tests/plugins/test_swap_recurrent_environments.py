"""Models with recurrences where models live: under autocast, sharded, saved, trained.

Where numbers are compared the model is in float64, so that 1e-9 lies far above rounding and far
below any mistake; see test_swap_recurrent.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import attnkit

if TYPE_CHECKING:
    from collections.abc import Iterator

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
CLOSE = 1e-9
PLANS = ("linear", "gated_linear", "state_space")


def build(dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(0)
    model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL)).eval().to(dtype)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.25)
    return model


def swapped(plan: str, dtype: torch.dtype = torch.float64) -> Any:
    """Return a model that stays swapped, always with the same new parameters."""
    model = build(dtype)
    attnkit.swap(model, plan, accept="different")
    return model


def prompt() -> dict[str, torch.Tensor]:
    """Return two prompts of 17 tokens, the first with 4 of padding before it."""
    ids = torch.randint(3, 97, (2, 17), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    ids[0, :4], mask[0, :4] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


INPUTS = prompt()
REAL = INPUTS["attention_mask"].bool()


@pytest.fixture(params=PLANS)
def plan(request: Any) -> str:
    found: str = request.param
    return found


def logits(model: Any, **more: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(**INPUTS, use_cache=False, **more).logits[REAL]
    return out


def gradients(model: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**INPUTS, use_cache=False).logits[REAL].square().mean().backward()
    whole = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {n: g.full_tensor() if isinstance(g, DTensor) else g for n, g in whole.items()}


def furthest(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def furthest_of(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Return the largest difference, relative to the largest number."""
    assert one.keys() == other.keys()
    largest = max(float(each.abs().max()) for each in one.values())
    return max(furthest(one[name], other[name]) for name in one) / largest


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


@pytest.fixture
def mesh() -> Iterator[Any]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


@pytest.mark.parametrize("plan", PLANS)
def test_swapped_model_can_be_sharded(plan: str, mesh: Any) -> None:
    wanted, model = gradients(swapped(plan)), swapped(plan)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert furthest_of(wanted, gradients(model)) < CLOSE
