"""Sliding-window attention: blocks of queries against the definition, and only keys in reach."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from pydantic import ValidationError
from torch.utils._python_dispatch import TorchDispatchMode

import attnkit
from attnkit.errors import UnsupportedError
from attnkit_contracts.judging.units import ANALYTIC_GATE
from attnkit_plugins.softmax.sliding_window import VARIANT, SlidingWindowConfig
from attnkit_plugins.softmax.sliding_window.blocks import BLOCK_ROWS

if TYPE_CHECKING:
    from torch import Tensor

    from attnkit import Mask
    from conftest import DrawInputs, SoftmaxError

CAUSAL = attnkit.causal()


def attend(tensors: dict[str, Tensor], mask: Mask, **options: Any) -> Tensor:
    return attnkit.attention(**tensors, mask=mask, variant=VARIANT, **options)


class Products(TorchDispatchMode):
    """Count the multiplications of all matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.multiplications = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.bmm, torch.ops.aten.baddbmm_):
            self.multiplications += out.numel() * args[-1].shape[1]
        return out


@pytest.fixture(params=["blocked", "unfolded"])
def by_blocks(request: pytest.FixtureRequest) -> str:
    """Name an implementation that cuts the queries into blocks."""
    name: str = request.param
    return name


@pytest.mark.parametrize("window", [1, 2, 63, 64, 65, 149, 150, 155])
@pytest.mark.parametrize("base", [CAUSAL, attnkit.full()], ids=repr)
def test_blocks_equal_the_definition_for_every_window(
    draw_inputs: DrawInputs, softmax_error: SoftmaxError, by_blocks: str, base: Mask, window: int
) -> None:
    mask = base & attnkit.sliding_window(window)
    assert softmax_error(VARIANT, by_blocks, draw_inputs(), mask=mask) <= ANALYTIC_GATE


@pytest.mark.parametrize("base", [CAUSAL, attnkit.full()], ids=repr)
@pytest.mark.parametrize(
    ("queries", "keys"), [(1, 1), (1, 150), (150, 1), (70, 150), (150, 70), (64, 128), (65, 129)]
)
def test_blocks_align_to_the_last_key(
    draw_inputs: DrawInputs,
    softmax_error: SoftmaxError,
    by_blocks: str,
    base: Mask,
    queries: int,
    keys: int,
) -> None:
    tensors = draw_inputs(queries=queries, keys=keys)
    mask = base & attnkit.sliding_window(20)
    assert softmax_error(VARIANT, by_blocks, tensors, mask=mask) <= ANALYTIC_GATE


def test_a_large_sink_gives_rows_out_of_reach_no_gradient(draw_inputs: DrawInputs) -> None:
    # exp(100) overflows in float32, exp(100 - 100) does not
    sinks = torch.full((4,), 100.0, requires_grad=True)
    tensors = {**draw_inputs(queries=250), "sinks": sinks}
    attend(tensors, CAUSAL & attnkit.sliding_window(20), implementation="blocked").sum().backward()
    assert sinks.grad is not None
    assert sinks.grad.isfinite().all()


def test_values_outside_the_window_reach_neither_outputs_nor_gradients(
    draw_inputs: DrawInputs,
) -> None:
    mask = CAUSAL & attnkit.sliding_window(20)

    def run(tensors: dict[str, Tensor]) -> tuple[Tensor, ...]:
        leaves = {name: each.clone().requires_grad_() for name, each in tensors.items()}
        out = attend(leaves, mask, softcap=2.0, implementation="blocked")
        return (out, *torch.autograd.grad(out.sin().sum(), tuple(leaves.values())))

    # 77 queries stand at the last keys: those before key 150 - 77 - 19 are out of their reach,
    # those of the first block's columns are hidden by the mask alone
    tensors = draw_inputs(queries=77)
    hidden = (attnkit.dense(torch.arange(150) != 100) & mask, 100)
    expected = run(tensors)
    tensors["key"][:, :, :54] = tensors["value"][:, :, :54] = 3e38
    for got, wanted in zip(run(tensors), expected, strict=True):
        assert torch.equal(got, wanted)
    mask, place = hidden
    expected = run(tensors)
    # overflows in the products, so that 0 * inf would show
    tensors["key"][:, :, place] = tensors["value"][:, :, place] = 3e38
    for got, wanted in zip(run(tensors), expected, strict=True):
        assert torch.equal(got, wanted)


def test_work_grows_with_the_window_not_with_the_keys(draw_inputs: DrawInputs) -> None:
    def work(length: int) -> int:
        tensors = draw_inputs(queries=length, keys=length, batch=1, heads=1, kv_heads=1)
        leaves = {name: each.requires_grad_() for name, each in tensors.items()}
        mask = CAUSAL & attnkit.sliding_window(100)
        with Products() as products:
            out = attend(leaves, mask, implementation="blocked")
            out.backward(torch.ones_like(out))
        return products.multiplications

    # two products forward, five backward, of width 8; a block reaches w - 1 keys before its own
    assert 0 < work(1024) <= 7 * 8 * 1024 * (100 - 1 + BLOCK_ROWS)
    assert work(2048) <= 2.2 * work(1024)


def test_a_call_without_a_window_is_refused(draw_inputs: DrawInputs) -> None:
    with pytest.raises(UnsupportedError, match="only masks with window"):
        attend(draw_inputs(), CAUSAL)


def test_a_layer_needs_its_window_size() -> None:
    with pytest.raises(ValidationError, match="window_size"):
        SlidingWindowConfig(embed_dim=8, num_heads=2)  # type: ignore[call-arg]  # the point


def test_steps_of_a_layer_equal_the_whole() -> None:
    torch.manual_seed(0)
    config = SlidingWindowConfig(
        embed_dim=16, num_heads=4, num_kv_heads=2, window_size=5, is_causal=True, rotary_base=1e4
    )
    layer: Any = attnkit.create("sliding_window", dtype=torch.float64, **config.model_dump())
    x = torch.randn(2, 12, 16, dtype=torch.float64)
    state = layer.init_state(2)
    ys = []
    for chunk in torch.split(x, [4, 1, 1, 6], 1):
        y, state = layer(chunk, state=state)
        ys.append(y)
    torch.testing.assert_close(torch.cat(ys, 1), layer(x))
