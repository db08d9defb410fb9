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


def coin(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(5)) < 0.5


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


@pytest.mark.parametrize(
    "other",
    [
        attnkit.padding([0, 140]),
        CAUSAL & attnkit.left_padding([100, 3]),
        attnkit.documents(torch.arange(150).repeat(2, 1) // 40),
        attnkit.prefix_lm([5, 120]),
        attnkit.dense(coin(1, 4, 70, 150)),
        attnkit.blocks(coin(2, 1, 5, 5), 32),
        CAUSAL & (attnkit.sliding_window(9) | attnkit.padding([4, 8])),
    ],
    ids=repr,
)
def test_blocks_compose_with_every_mask(
    draw_inputs: DrawInputs,
    softmax_error: SoftmaxError,
    by_blocks: str,
    dtype: torch.dtype,
    other: Mask,
) -> None:
    tensors = draw_inputs(queries=70, dtype=dtype)
    mask = other & attnkit.sliding_window(20)
    assert softmax_error(VARIANT, by_blocks, tensors, mask=mask) <= ANALYTIC_GATE


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_blocks_take_sinks_softcap_bias_and_grouped_heads_together(
    draw_inputs: DrawInputs,
    softmax_error: SoftmaxError,
    by_blocks: str,
    dtype: torch.dtype,
    kv_heads: int,
    softcap: float | None,
) -> None:
    # the first rows of more queries than keys are out of reach of all keys
    tensors = draw_inputs(queries=250, kv_heads=kv_heads, value_width=5, dtype=dtype)
    generator = torch.Generator().manual_seed(2)
    tensors["bias"] = torch.randn(4, 1, 150, generator=generator).to(dtype)
    tensors["sinks"] = torch.randn(4, generator=generator).to(dtype)
    mask = CAUSAL & attnkit.sliding_window(20) & attnkit.padding([0, 130])
    error = softmax_error(VARIANT, by_blocks, tensors, mask=mask, scale=0.7, softcap=softcap)
    assert error <= ANALYTIC_GATE


def test_a_large_sink_gives_rows_out_of_reach_no_gradient(draw_inputs: DrawInputs) -> None:
    # exp(100) overflows in float32, exp(100 - 100) does not
    sinks = torch.full((4,), 100.0, requires_grad=True)
    tensors = {**draw_inputs(queries=250), "sinks": sinks}
    attend(tensors, CAUSAL & attnkit.sliding_window(20), implementation="blocked").sum().backward()
    assert sinks.grad is not None
    assert sinks.grad.isfinite().all()


def test_blocks_pass_gradcheck(draw_inputs: DrawInputs) -> None:
    tensors = draw_inputs(queries=5, keys=7, batch=1, width=3, value_width=3, dtype=torch.float64)
    tensors["bias"] = torch.randn(5, 7, generator=torch.Generator().manual_seed(4)).double()
    tensors["sinks"] = torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)
    names = tuple(tensors)

    def run(*given: Tensor) -> Tensor:
        mask = CAUSAL & attnkit.sliding_window(3)
        tensors = dict(zip(names, given, strict=True))
        return attend(tensors, mask, softcap=2.0, implementation="blocked")

    assert torch.autograd.gradcheck(run, [each.requires_grad_() for each in tensors.values()])


def test_blocks_refuse_second_derivatives(draw_inputs: DrawInputs) -> None:
    tensors = draw_inputs(queries=4, keys=4)
    query = tensors["query"].requires_grad_()
    out = attend(tensors, attnkit.sliding_window(2), implementation="blocked")
    (grad,) = torch.autograd.grad(out.square().sum(), query, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


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


def test_dropout_is_refused(draw_inputs: DrawInputs) -> None:
    with pytest.raises(UnsupportedError, match="dropout"):
        attend(draw_inputs(), attnkit.sliding_window(4), dropout_p=0.1)


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


def test_compiles_to_one_graph(draw_inputs: DrawInputs) -> None:
    mask = CAUSAL & attnkit.sliding_window(20)

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        tensors = {"query": query, "key": key, "value": value}
        return attend(tensors, mask, implementation="unfolded")

    torch.compiler.reset()
    leaves = [each.requires_grad_() for each in draw_inputs(queries=70, keys=70).values()]
    out = torch.compile(run, backend="aot_eager", fullgraph=True)(*leaves)
    expected = run(*leaves)
    # a graph leaves products to MKL, eager mode to oneDNN
    torch.testing.assert_close(out, expected)
    grads = torch.autograd.grad(out.sin().sum(), leaves)
    for got, wanted in zip(grads, torch.autograd.grad(expected.sin().sum(), leaves), strict=True):
        torch.testing.assert_close(got, wanted)
