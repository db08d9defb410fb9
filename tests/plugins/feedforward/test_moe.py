"""Mixture of experts: its routing, its losses and its layer."""

from __future__ import annotations

import importlib
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from pydantic import ValidationError
from torch.nn.functional import linear, silu

import attnkit
from attnkit.errors import (
    ArgumentError,
    DtypeError,
    MaskError,
    ShapeError,
    StateError,
    UnsupportedError,
)
from attnkit_plugins.feedforward.moe import VARIANT, MoEConfig
from attnkit_plugins.feedforward.moe.layer import MoELayer
from attnkit_plugins.feedforward.moe.router import Routing, route

if TYPE_CHECKING:
    from torch import Tensor

NAMES = ("reference", "loop", "grouped", "dense")


def layer(seed: int = 0, dtype: torch.dtype = torch.float32, **options: Any) -> MoELayer:
    torch.manual_seed(seed)
    given = {"embed_dim": 16, "hidden_dim": 24, "num_experts": 5, **options}
    return MoELayer(MoEConfig(**given), variant=VARIANT, dtype=dtype)


def tokens(batch: int, length: int, seed: int = 3) -> Tensor:
    return torch.randn(batch, length, 16, generator=torch.Generator().manual_seed(seed))


# routing


def test_equal_probabilities_rank_by_expert_index() -> None:
    routing = route(
        torch.zeros(1, 3, 64),
        torch.ones(1, 3, dtype=torch.bool),
        top_k=4,
        renormalise=True,
        capacity_factor=None,
    )
    assert routing.experts.tolist() == [[[0, 1, 2, 3]] * 3]
    assert routing.gates.tolist() == [[[0.25] * 4] * 3]


@pytest.mark.parametrize("renormalise", [True, False])
def test_gates_are_the_chosen_probabilities(*, renormalise: bool) -> None:
    _, routing = layer(renormalise=renormalise)(tokens(2, 6), return_routing=True)
    chosen = routing.probabilities.gather(-1, routing.experts)
    expected = chosen / chosen.sum(-1, keepdim=True) if renormalise else chosen
    torch.testing.assert_close(routing.gates, expected)


def test_the_router_runs_in_float32_also_in_half_precision_and_under_autocast() -> None:
    half = layer(dtype=torch.bfloat16)
    x = tokens(1, 5).bfloat16()
    _, routing = half(x, return_routing=True)
    expected = linear(x.float(), half.router.weight.float())
    assert torch.equal(routing.logits, expected)
    single = layer()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, routing = single(x.float(), return_routing=True)
    assert torch.equal(routing.logits, linear(x.float(), single.router.weight))
    assert y.dtype == torch.float32


@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_a_uniform_router_has_load_balance_loss_one_and_z_loss_log_e_squared(top_k: int) -> None:
    routing = route(
        torch.zeros(2, 7, 5),
        torch.ones(2, 7, dtype=torch.bool),
        top_k=top_k,
        renormalise=True,
        capacity_factor=None,
    )
    assert routing.load_balance_loss.item() == pytest.approx(1.0)
    assert routing.z_loss.item() == pytest.approx(math.log(5) ** 2)


def test_load_balance_loss_of_a_collapsed_router_is_the_number_of_experts() -> None:
    logits = torch.zeros(1, 4, 8)
    logits[..., 3] = 50.0
    routing = route(
        logits,
        torch.ones(1, 4, dtype=torch.bool),
        top_k=1,
        renormalise=False,
        capacity_factor=None,
    )
    assert routing.load_balance_loss.item() == pytest.approx(8.0)


@pytest.mark.parametrize("loss", ["load_balance_loss", "z_loss"])
def test_losses_teach_the_router(loss: str) -> None:
    built = layer()
    _, routing = built(tokens(2, 6), return_routing=True)
    getattr(routing, loss).backward()
    assert built.router.weight.grad is not None
    assert built.router.weight.grad.any()


@pytest.mark.parametrize(("top_k", "renormalise"), [(2, True), (1, False), (2, False)])
def test_the_task_teaches_the_router(top_k: int, *, renormalise: bool) -> None:
    built = layer(top_k=top_k, renormalise=renormalise)
    built(tokens(2, 6)).square().sum().backward()
    assert built.router.weight.grad is not None
    assert built.router.weight.grad.any()


def test_the_router_gets_a_gradient_even_where_gates_are_constant() -> None:
    built = layer(top_k=1)
    built(tokens(2, 6)).sum().backward()
    assert built.router.weight.grad is not None


# capacity


def crowded(**options: Any) -> tuple[Tensor, Tensor, Routing, MoELayer]:
    """Send every token of two samples to expert 2."""
    built = layer(top_k=1, capacity_factor=1.0, **options)
    x = tokens(2, 10)
    x[..., 0] = 9.0
    with torch.no_grad():
        built.router.weight.zero_()
        built.router.weight[2, 0] = 1.0
    y, routing = built(x, return_routing=True)
    return x, y, routing, built


def test_tokens_over_capacity_are_dropped_in_token_order_and_counted() -> None:
    x, y, routing, built = crowded()
    # ceil(1.0 * 10 tokens * 1 / 5 experts) = 2 in each sample
    assert routing.experts[..., 0].tolist() == [[2, 2] + [-1] * 8] * 2
    assert routing.dropped.item() == 16
    assert not y[:, 2:].any()
    assert not routing.gates[:, 2:].any()
    free = MoELayer(built.config.model_copy(update={"capacity_factor": None}), variant=VARIANT)
    free.load_state_dict(built.state_dict())
    torch.testing.assert_close(y[:, :2], free(x)[:, :2])


def test_padding_takes_no_capacity() -> None:
    x, _, _, built = crowded()
    _, routing = built(x, mask=attnkit.left_padding([0, 5]), return_routing=True)
    # 5 real tokens in the second sample: ceil(5 / 5) = 1
    assert routing.experts[1, :, 0].tolist() == [-1] * 5 + [2] + [-1] * 4
    assert routing.dropped.item() == 8 + 4


def test_nothing_is_dropped_without_capacity() -> None:
    _, routing = layer()(tokens(2, 9), return_routing=True)
    assert routing.dropped.item() == 0
    assert (routing.experts >= 0).all()


def test_capacity_in_one_sample_does_not_depend_on_the_other() -> None:
    built = layer(capacity_factor=0.6)
    x = tokens(3, 8)
    torch.testing.assert_close(built(x)[1:2], built(x[1:2]), rtol=0, atol=1e-6)


# padding


@pytest.mark.parametrize("filler", [0.0, 7.0, math.nan, math.inf])
@pytest.mark.parametrize("name", NAMES)
def test_padding_counts_nowhere(filler: float, name: str) -> None:
    built = layer(implementation=name)
    x = tokens(2, 6)
    x[1, 4:] = filler
    x.requires_grad_()
    y, routing = built(x, mask=attnkit.padding([6, 4]), return_routing=True)
    (y.square().sum() + routing.load_balance_loss + routing.z_loss).backward()
    assert x.grad is not None
    assert not y[1, 4:].any()
    assert not x.grad[1, 4:].any()
    assert (routing.experts[1, 4:] == -1).all()
    clean = layer(implementation=name)
    with torch.no_grad():
        packed = torch.cat((x[0], x[1, :4]))[None]
    alone, expected = clean(packed, return_routing=True)
    (alone.square().sum() + expected.load_balance_loss + expected.z_loss).backward()
    torch.testing.assert_close(torch.cat((y[0], y[1, :4])), alone[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(routing.load_balance_loss, expected.load_balance_loss)
    torch.testing.assert_close(routing.z_loss, expected.z_loss)
    for ours, theirs in zip(built.parameters(), clean.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_batch_of_padding_alone_is_zero_with_zero_gradients() -> None:
    built = layer()
    y, routing = built(tokens(2, 3), mask=attnkit.padding([0, 0]), return_routing=True)
    (y.sum() + routing.load_balance_loss + routing.z_loss).backward()
    assert not y.any()
    for parameter in built.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_masks_about_who_sees_whom_change_nothing() -> None:
    built, x = layer(), tokens(2, 6)
    expected = built(x)
    ids = torch.tensor([[0, 0, 0, 1, 1, 1]] * 2)
    for mask in (attnkit.causal(), attnkit.sliding_window(2), attnkit.documents(ids)):
        assert torch.equal(built(x, mask=mask), expected)


def test_a_union_with_padding_is_refused() -> None:
    mask = attnkit.causal() | attnkit.padding([3, 3])
    with pytest.raises(UnsupportedError, match="join padding to other masks with &"):
        layer()(tokens(2, 3), mask=mask)


def test_padding_of_another_batch_is_refused() -> None:
    with pytest.raises(MaskError, match="lengths must be"):
        layer()(tokens(2, 3), mask=attnkit.padding([3, 3, 3]))


# layer


def test_grouped_refuses_to_compile_what_it_cannot_trace() -> None:
    problem = layer()._problem(tokens(1, 4)[0])
    (grouped,) = (i for i in VARIANT.implementations if i.name == "grouped")
    assert grouped.refuses(problem) is None
    assert "bfloat16" in str(grouped.refuses(replace(problem, compiling=True)))


@pytest.mark.parametrize("name", ["auto", *NAMES])
def test_chunks_and_steps_equal_the_whole(name: str) -> None:
    built, x = layer(implementation=name), tokens(2, 7)
    mask = attnkit.left_padding([0, 3])
    whole = built(x, mask=mask)
    state, parts = built.init_state(2), []
    for part in x.split([3, 1, 1, 2], dim=1):
        y, state = built(part, mask=mask, state=state)
        parts.append(y)
    assert state.tokens == 7
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-6)


def test_state_and_routing_are_returned_together() -> None:
    y, state, routing = layer()(tokens(2, 3), state=layer().init_state(2), return_routing=True)
    assert (y.shape, state.tokens, routing.experts.shape) == ((2, 3, 16), 3, (2, 3, 2))


def test_a_state_with_capacity_is_refused() -> None:
    built = layer(capacity_factor=1.0)
    with pytest.raises(UnsupportedError, match="capacity_factor=None"):
        built(tokens(1, 3), state=built.init_state(1))


def test_wrong_inputs_are_refused_by_name() -> None:
    built = layer()
    with pytest.raises(ShapeError, match="D = 16, got"):
        built(torch.zeros(2, 3, 8))
    with pytest.raises(DtypeError, match="float32, got bfloat16"):
        built(tokens(2, 3).bfloat16())
    with pytest.raises(StateError, match="3 samples, the call has 2"):
        built(tokens(2, 3), state=built.init_state(3))
    with pytest.raises(ArgumentError, match="no implementation 'fastest'"):
        layer(implementation="fastest")(tokens(1, 2))


def test_top_k_over_num_experts_is_refused() -> None:
    with pytest.raises(ValidationError, match="at most num_experts, got 6 and 5"):
        MoEConfig(embed_dim=4, hidden_dim=4, num_experts=5, top_k=6)


@pytest.mark.parametrize("shape", [(0, 3, 16), (2, 0, 16)])
def test_empty_batches_and_sequences_are_empty(shape: tuple[int, ...]) -> None:
    y, routing = layer()(torch.zeros(shape), return_routing=True)
    assert y.shape == shape
    assert routing.load_balance_loss.item() == 0.0


def test_inputs_are_not_written_to_in_training() -> None:
    built, x = layer().train(), tokens(2, 5)
    before = x.clone()
    built(x, mask=attnkit.padding([5, 2]))
    assert torch.equal(x, before)


def test_a_layer_of_copies_of_a_dense_network_computes_what_it_computes() -> None:
    generator = torch.Generator().manual_seed(2)
    gate, up = torch.randn(2, 24, 16, generator=generator) / 4
    down = torch.randn(16, 24, generator=generator) / 5
    config = MoEConfig(embed_dim=16, hidden_dim=24, num_experts=4)
    built = MoELayer.from_dense(config, gate, up, down, variant=VARIANT)
    x = tokens(2, 5)
    expected = linear(silu(linear(x, gate)) * linear(x, up), down)
    torch.testing.assert_close(built(x), expected, rtol=0, atol=1e-5)


def test_from_dense_refuses_other_widths() -> None:
    config = MoEConfig(embed_dim=16, hidden_dim=24, num_experts=4)
    matrix = torch.zeros(24, 16)
    with pytest.raises(ShapeError, match=r"\(24, 16\), got"):
        MoELayer.from_dense(config, matrix, matrix, matrix, variant=VARIANT)


def test_the_layer_compiles_without_a_graph_break() -> None:
    built, x = layer(), tokens(2, 8)
    mask = attnkit.padding([8, 5])
    compiled = torch.compile(built, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, mask=mask), built(x, mask=mask))


def test_experts_agree_with_mixtral() -> None:
    modeling = importlib.import_module("transformers.models.mixtral.modeling_mixtral")
    transformers = importlib.import_module("transformers")
    config = transformers.MixtralConfig(
        hidden_size=16, intermediate_size=24, num_local_experts=5, num_experts_per_tok=2
    )
    block = modeling.MixtralSparseMoeBlock(config)
    built, x = layer(), tokens(2, 6)
    with torch.no_grad():
        block.gate.weight.copy_(built.router.weight)
        block.experts.gate_up_proj.copy_(built.gate_up_proj)
        block.experts.down_proj.copy_(built.down_proj)
        found = block(x)
        theirs = found[0] if isinstance(found, tuple) else found
        torch.testing.assert_close(built(x), theirs, rtol=0, atol=1e-5)
