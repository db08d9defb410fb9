"""Swaps in a user's own modules come out as they went in, and go where the module goes.

Where a test compares numbers itself, all is in float64, as in `test_swap_torch.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from own_layers import SAMPLE, Calling, Projected, spelt
from tiny_models import CLOSE, COPIES, copied, furthest
from torch import nn
from torch.nn import functional
from torch_layers import DOUBLE

import attnkit
from attnkit.errors import SwapError, SwapRefusedError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable


class Around(Projected):
    """Calls torch's function, and hands the result to another layer."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> Any:
        mixed = functional.scaled_dot_product_attention(*self.heads(x))
        return self.inner(self.out(mixed.transpose(1, 2).flatten(2)))


def boxed() -> nn.Module:
    return nn.Sequential(Calling())


class Looking(Projected):
    """Does the arithmetic itself where its weights are asked for, as timm's and others' do."""

    def forward(self, x: torch.Tensor, return_attention: bool = False, **options: Any) -> Any:
        q, k, v = self.heads(x)
        if not return_attention:
            mixed = functional.scaled_dot_product_attention(q, k, v, **options)
            return self.out(mixed.transpose(1, 2).flatten(2))
        weights = (q @ k.mT / 8**0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2)), weights


@pytest.mark.parametrize("given", [((), {"return_attention": True}), ((True,), {})], ids=str)
def test_weights_that_are_computed_past_the_variant_are_refused_by_name(given: Any) -> None:
    layer, x, (args, keywords) = Looking(), SAMPLE["x"], given
    with attnkit.swap(layer, "multi_head", sample=SAMPLE):
        layer(x, return_attention=False)
        told = "return_attention: Looking has attention weights .*'multi_head' does not run"
        with pytest.raises(UnsupportedError, match=told):
            layer(x, *args, **keywords)
    out, weights = layer(x, *args, **keywords)
    assert (out.shape, weights.shape) == (x.shape, (*x.shape[:1], 4, x.shape[1], x.shape[1]))


NARROW = {"variant": "sliding_window", "window_size": 2}


@pytest.mark.parametrize("inner", [Calling, boxed])
def test_layer_around_another_site_does_not_answer_for_it(inner: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(Around(inner()))
    told = r"0\n    inside: Around holds 0\.inner\S*, .*answered here too; leave 0 out .*swap both"
    with pytest.raises(SwapRefusedError, match=told):
        attnkit.swap(model, {"0": NARROW}, sample={"input": SAMPLE["x"]}, accept="different")
    assert not attnkit.explain(model, {"0": NARROW}).possible


def test_layer_around_another_hosts_site_is_refused_in_every_plan() -> None:
    inner = nn.MultiheadAttention(32, 4, dtype=DOUBLE)
    for plan in ({"0": "flash"}, "flash"):
        told = attnkit.explain(nn.Sequential(Around(inner)), plan)[0].reasons
        assert [each.endswith("leave 0 out of the plan") for each in told] == [True]


def test_layers_in_each_other_run_what_the_plan_says_of_each() -> None:
    inner = Calling()
    model = nn.Sequential(Around(inner))
    plan = {"0.inner": "multi_head", "0": NARROW}
    with torch.no_grad():
        wanted = inner(SAMPLE["x"])
        swapped = attnkit.swap(model, plan, sample={"input": SAMPLE["x"]}, accept="different")
        assert furthest(inner(SAMPLE["x"]), wanted) < CLOSE
    assert [(site.variant, site.calls) for site in swapped.receipt.sites] == [
        ("sliding_window", 1),
        ("multi_head", 1),
    ]


@pytest.mark.parametrize("make", [Calling, spelt], ids=["calling", "declared"])
def test_restore_puts_back_the_same_objects(make: Callable[[], Any]) -> None:
    layer = make()
    before = {name: id(value) for name, value in vars(layer).items()}
    swapped = attnkit.swap(layer, "multi_head", sample=SAMPLE)
    assert {name: id(value) for name, value in vars(layer).items()} != before
    swapped.restore()
    assert {name: id(value) for name, value in vars(layer).items()} == before


def test_forward_that_an_instance_was_given_runs_and_comes_back() -> None:
    layer, calls = Calling(), []
    own = layer.forward

    def given(*args: Any, **options: Any) -> Any:
        calls.append(args)
        return own(*args, **options)

    layer.forward = given  # type: ignore[method-assign]  # as other libraries do
    with torch.no_grad(), attnkit.swap(layer, "flash", sample=SAMPLE):
        calls.clear()
        layer(**SAMPLE)
        assert len(calls) == 1
    assert vars(layer)["forward"] is given


def test_swaps_stand_on_each_other_and_unwind_in_order() -> None:
    layer = spelt()
    first = attnkit.swap(layer, "multi_head", sample=SAMPLE)
    between = vars(layer)["attend"]
    second = attnkit.swap(layer, "flash", sample=SAMPLE)
    with pytest.raises(SwapError, match="'flash' was swapped in after 'multi_head'"):
        first.restore()
    second.restore()
    assert vars(layer)["attend"] is between
    first.restore()
    assert "attend" not in vars(layer)


def test_swap_needs_a_sample_of_the_users() -> None:
    with pytest.raises(SwapError, match=r"cannot make inputs for Calling; give the swap sample="):
        attnkit.swap(Calling(), "flash")


@pytest.mark.parametrize("how", COPIES)
def test_copies_of_a_swapped_module_are_swapped_and_stand_alone(how: str) -> None:
    layer = Calling()
    model = nn.Sequential(layer)
    plan = {"variant": "sliding_window", "window_size": 2}
    sample = {"input": SAMPLE["x"]}
    with torch.no_grad(), attnkit.swap(model, plan, sample=sample, accept="different"):
        expected = model(SAMPLE["x"])
        other = copied(model, how)
        nn.init.zeros_(layer.qkv.weight)
    assert torch.equal(other(SAMPLE["x"]), expected)


@pytest.mark.parametrize("make", [Calling, spelt], ids=["calling", "declared"])
def test_swapped_module_compiles_into_one_graph(make: Callable[[], Any]) -> None:
    layer = make()
    with torch.no_grad(), attnkit.swap(layer, "multi_head", sample=SAMPLE):
        expected = layer(**SAMPLE)
        compiled = torch.compile(layer, backend="eager", fullgraph=True)
        assert furthest(compiled(**SAMPLE), expected) < CLOSE


@pytest.mark.parametrize("make", [Calling, spelt], ids=["calling", "declared"])
def test_gradients_are_those_of_the_module(make: Callable[[], Any]) -> None:
    layer = make()

    def gradients() -> list[torch.Tensor]:
        out = layer(**SAMPLE).square().mean()
        return list(torch.autograd.grad(out, list(layer.parameters())))

    before = gradients()
    with attnkit.swap(layer, "multi_head", sample=SAMPLE):
        after = gradients()
    largest = max(float(each.abs().max()) for each in before)
    assert max(map(furthest, before, after)) < CLOSE * largest


def test_checkpointed_module_runs_the_variant_again_in_the_backward_pass() -> None:
    layer, x = Calling(), SAMPLE["x"].clone().requires_grad_()
    plan = {"variant": "sliding_window", "window_size": 2}
    checkpoint = torch.utils.checkpoint.checkpoint
    with attnkit.swap(layer, plan, sample=SAMPLE, accept="different"):
        (plain,) = torch.autograd.grad(layer(x).square().mean(), x)
        out = checkpoint(layer, x, use_reentrant=False)
        (again,) = torch.autograd.grad(out.square().mean(), x)
    assert torch.equal(plain, again)


def test_autocast_rounds_as_it_does_without_the_swap() -> None:
    layer, x = Calling().float(), SAMPLE["x"].float()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        before = layer(x)
        with attnkit.swap(layer, "multi_head", sample={"x": x}):
            after = layer(x)
    assert after.dtype == before.dtype
    # a handful of bfloat16 roundings of values of this size
    assert furthest(before, after) < 8 * 2.0**-8 * float(before.abs().max())
