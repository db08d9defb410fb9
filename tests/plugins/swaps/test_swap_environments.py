"""Swapped models where models live: compiled, checkpointed, under autocast, copied, sharded.

Where numbers are compared the model is in float64, so that 1e-9 lies far above rounding and far
below any mistake; see test_swap_transformers.py.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from small_llama import INPUTS, REAL, build, furthest_of, gradients, logits
from tiny_models import CLOSE, furthest
from torch.distributed.fsdp import FSDPModule, fully_shard

import attnkit
from attnkit.masks.constructors import Sizes
from attnkit_plugins.hosts.transformers.dispatch import attend

if TYPE_CHECKING:
    from collections.abc import Iterator

WINDOW: Any = {"variant": "sliding_window", "window_size": 4}


@pytest.fixture
def model() -> Any:
    return build()


# torch.compile

# torch's own warning, when it traces an autograd.Function
QUIET = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
PLANS = pytest.mark.parametrize("plan", ["multi_head", "flash", WINDOW], ids=str)


@pytest.fixture(autouse=True)
def forget_graphs() -> Iterator[None]:
    yield
    torch.compiler.reset()


@QUIET
@PLANS
@pytest.mark.parametrize("dynamic", [None, True])  # True: with symbols for all numbers
def test_padded_batch_compiles_into_one_graph(
    model: Any, plan: Any, *, dynamic: bool | None
) -> None:
    attnkit.swap(model, plan, accept="different")
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=dynamic)
    assert furthest(logits(compiled), logits(model)) < CLOSE


def test_backward_pass_compiles_into_one_graph(model: Any) -> None:
    attnkit.swap(model, "multi_head")
    wanted = gradients(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    model.zero_grad()
    compiled(**INPUTS, use_cache=False).logits[REAL].square().mean().backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    assert furthest_of(wanted, found) < CLOSE


@QUIET
def test_graph_compiled_before_a_swap_is_not_used_after_it(model: Any) -> None:
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    before = logits(compiled)
    swapped = attnkit.swap(model, WINDOW, accept="different")
    between = logits(compiled)
    assert furthest(between, logits(model)) < CLOSE
    assert furthest(between, before) > 1e-3
    swapped.restore()
    assert torch.equal(logits(compiled), before)


@QUIET
def test_window_of_a_plan_is_refused_by_name_in_a_graph_with_a_static_cache(model: Any) -> None:
    attnkit.swap(model, WINDOW, accept="different")
    cache = transformers.StaticCache(config=model.config, max_cache_len=32)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="window_size: needs to know where the queries stand"):
        compiled(**INPUTS, past_key_values=cache, use_cache=True)


# gradient checkpointing, autocast, inference mode


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers_give_the_same_gradients(model: Any, *, reentrant: bool) -> None:
    wanted = gradients(model)
    attnkit.swap(model, "multi_head")
    model.train()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    assert furthest_of(wanted, gradients(model)) < CLOSE


def test_training_under_autocast_stays_as_close_to_the_model_as_its_rounding() -> None:
    exact = gradients(build())
    model = build(torch.float32)

    def error() -> float:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = gradients(model)
        assert {each.dtype for each in found.values()} == {torch.float32}
        return furthest_of(exact, {name: each.double() for name, each in found.items()})

    before = error()
    attnkit.swap(model, "multi_head")
    # both round to bfloat16 in the same places but within attention
    assert error() < 2 * before


def test_autocast_ends_where_the_variant_begins() -> None:
    model = build(torch.float32)
    attnkit.swap(model, {"variant": "multi_head", "implementation": "eager"})
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 9, 16, generator=generator)
    key, value = torch.randn(2, 2, 2, 9, 16, generator=generator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, _ = attend(model.model.layers[0].self_attn, query, key, value)
    halves = (each.bfloat16() for each in (query, key, value))
    wanted = attnkit.attention(
        *halves, mask=attnkit.causal(), variant="multi_head", implementation="eager"
    )
    assert torch.equal(out, wanted.transpose(1, 2))


@PLANS
def test_inference_mode_computes_the_same_bits(model: Any, plan: Any) -> None:
    attnkit.swap(model, plan, accept="different")
    with torch.inference_mode():
        inferred = model(**INPUTS, use_cache=False).logits[REAL].clone()
    assert torch.equal(inferred.clone(), logits(model))


def choosing(query: Any, key: Any, value: Any, *, mask: Any, scale: float, **rest: Any) -> Any:
    """Attend by a `where`, which keeps the mask for its backward pass."""
    key, value = (
        each.repeat_interleave(query.shape[1] // each.shape[1], 1) for each in (key, value)
    )
    logits = query @ key.mT * scale
    sizes = Sizes(*logits.shape)
    hidden = logits.new_full((), float("-inf"))
    weights = torch.where(mask.to_bool(sizes, query.device), logits, hidden).softmax(-1)
    return weights.nan_to_num() @ value


def test_mask_that_inference_mode_has_seen_serves_a_backward_pass(model: Any) -> None:
    general = attnkit.get_variant("multi_head")
    reference = general.implementations[0]
    own = dataclasses.replace(reference, name="own", function=choosing, cost=lambda _: 0.0)
    implementations = (reference, own)
    variant = dataclasses.replace(general, name="choosing", implementations=implementations)
    attnkit.swap(model, variant)
    ids = INPUTS["input_ids"]
    seen = torch.ones(17, 17, dtype=torch.bool).tril()[None, None] & REAL[:, None, None]
    with torch.inference_mode():
        inferred = model(ids, attention_mask=seen, use_cache=False).logits.clone()
    out = model(ids, attention_mask=seen, use_cache=False).logits
    out[REAL].square().mean().backward()
    assert torch.equal(inferred[REAL].clone(), out.detach()[REAL])


def test_mask_of_inference_mode_that_is_written_to_is_read_again(model: Any) -> None:
    attnkit.swap(model, "multi_head")
    ids = INPUTS["input_ids"]
    with torch.inference_mode():
        seen = torch.ones(2, 1, 17, 17, dtype=torch.bool).tril()
        first = model(ids, attention_mask=seen, use_cache=False).logits
        seen[..., :9] = False
        seen |= torch.eye(17, dtype=torch.bool)
        second = model(ids, attention_mask=seen, use_cache=False).logits
        fresh = model(ids, attention_mask=seen.clone(), use_cache=False).logits
    assert torch.equal(second, fresh)
    assert furthest(first, second) > 1e-3


# copies and checkpoints


def test_copy_of_a_swapped_model_stays_swapped_when_the_model_is_restored(model: Any) -> None:
    before = logits(model)
    swapped = attnkit.swap(model, WINDOW, accept="different")
    windowed = logits(model)
    other = copy.deepcopy(model)
    swapped.restore()
    assert torch.equal(logits(other), windowed)
    assert torch.equal(logits(model), before)


def test_copy_of_a_swapped_model_can_be_swapped_and_restored_by_itself(model: Any) -> None:
    attnkit.swap(model, "multi_head")
    other = copy.deepcopy(model)
    with attnkit.swap(other, WINDOW, accept="different"):
        assert furthest(logits(other), logits(model)) > 1e-3
    assert torch.equal(logits(other), logits(model))


def test_state_dict_has_the_names_and_tensors_of_the_model(model: Any) -> None:
    before = model.state_dict(keep_vars=True)
    attnkit.swap(model, "flash")
    after = model.state_dict(keep_vars=True)
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)


@pytest.mark.parametrize("swapped", ["from", "into"])
def test_state_dict_goes_between_a_swapped_model_and_one_that_is_not(swapped: str) -> None:
    one, other = build(), build()
    torch.nn.init.normal_(other.lm_head.weight)
    attnkit.swap(one if swapped == "from" else other, "multi_head")
    other.load_state_dict(one.state_dict())
    assert furthest(logits(one), logits(other)) < CLOSE


# FSDP2 on one process


def shard(model: Any, mesh: Any) -> None:
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert isinstance(model, FSDPModule)


def test_swapped_model_can_be_sharded(model: Any, mesh: Any) -> None:
    wanted = gradients(model)
    attnkit.swap(model, "multi_head")
    shard(model, mesh)
    assert furthest_of(wanted, gradients(model)) < CLOSE


def test_sharded_model_can_be_swapped_and_restored(model: Any, mesh: Any) -> None:
    wanted = gradients(model)
    shard(model, mesh)
    with attnkit.swap(model, "multi_head") as swapped:
        assert [site.calls > 0 for site in swapped.receipt.sites] == [True, True]
        assert furthest_of(wanted, gradients(model)) < CLOSE
    assert furthest_of(wanted, gradients(model)) < CLOSE


# generation and training


@pytest.mark.parametrize("plan", ["multi_head", "flash", WINDOW], ids=str)
def test_chunks_and_steps_of_a_padded_batch_equal_one_call(model: Any, plan: Any) -> None:
    ids, mask = INPUTS["input_ids"], INPUTS["attention_mask"]
    cuts = [slice(0, 7), slice(7, 8), slice(8, 15), slice(15, 16), slice(16, 17)]
    attnkit.swap(model, plan, accept="different")
    cache = transformers.DynamicCache(config=model.config)
    with torch.no_grad():
        parts = [
            model(ids[:, cut], attention_mask=mask[:, : cut.stop], past_key_values=cache).logits
            for cut in cuts
        ]
    assert furthest(logits(model), torch.cat(parts, dim=1)[REAL]) < CLOSE


@pytest.mark.parametrize("variant", ["multi_head", "flash"])
def test_greedy_search_without_padding_is_equal_token_for_token(model: Any, variant: str) -> None:
    rules = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    ids = INPUTS["input_ids"][1:]
    before = model.generate(ids, **rules)
    with attnkit.swap(model, variant):
        after = model.generate(ids, **rules)
    assert torch.equal(before, after)


@pytest.mark.parametrize("variant", ["multi_head", "flash"])
def test_beam_search_of_a_padded_batch_is_equal_token_for_token(model: Any, variant: str) -> None:
    rules = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    before = model.generate(**INPUTS, **rules, num_beams=3)
    with attnkit.swap(model, variant):
        after = model.generate(**INPUTS, **rules, num_beams=3)
    assert torch.equal(before, after)


def test_training_steps_lead_to_the_same_weights() -> None:
    def train(model: Any) -> dict[str, torch.Tensor]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for _ in range(3):
            gradients(model)
            optimizer.step()
        return {name: each.detach() for name, each in model.named_parameters()}

    own, swapped = build(), build()
    attnkit.swap(swapped, "multi_head")
    # Adam divides by the size of the gradient: where it is rounding alone, 1e-3 of it is too
    assert furthest_of(train(own), train(swapped)) < 1e-6
