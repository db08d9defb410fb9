"""FlashAttention: the tiles against the definition, and torch's kernel only where it is right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

import attnkit
from attnkit.choice.decision import explain_choice
from attnkit.errors import MaskError, UnsupportedError
from attnkit.kernels import onednn as products
from attnkit.kernels.onednn import stays_exact
from attnkit.operations.attention import problem_of
from attnkit_contracts.judging.units import ANALYTIC_GATE
from attnkit_plugins.softmax.flash import VARIANT
from attnkit_plugins.softmax.flash.tiles import TILE_ELEMENTS

if TYPE_CHECKING:
    from torch import Tensor

    from attnkit import Mask
    from conftest import DrawInputs, SoftmaxError


def coin(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(5)) < 0.5


def attend(tensors: dict[str, Tensor], mask: Mask, implementation: str) -> Tensor:
    rules: dict[str, Any] = {**tensors, "mask": mask, "implementation": implementation}
    return attnkit.attention(**rules, variant=VARIANT)


# of 140 queries and 300 keys: two tiles of queries, two of keys
MASKS = {
    "full": attnkit.full(),
    "causal": attnkit.causal(),
    "window": attnkit.sliding_window(20),
    "causal window": attnkit.causal() & attnkit.sliding_window(20),
    "padding, one sample empty": attnkit.padding([0, 290]),
    "causal left padding": attnkit.causal() & attnkit.left_padding([170, 3]),
    "documents": attnkit.documents(torch.arange(300).repeat(2, 1) // 70),
    "prefix": attnkit.prefix_lm([5, 200]),
    "dense, by head": attnkit.dense(coin(1, 4, 140, 300)),
    "blocks, by sample": attnkit.blocks(coin(2, 1, 10, 10), 32),
    "union": attnkit.causal() & (attnkit.sliding_window(9) | attnkit.padding([4, 8])),
}


class Largest(TorchDispatchMode):
    """Remember the largest tensor that any operation returns, in elements."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(each, torch.Tensor):
                # of an expanded view, what it occupies
                size = min(each.numel(), each.untyped_storage().nbytes() // each.element_size())
                self.elements = max(self.elements, size)
        return out


def largest_tensor(tensors: dict[str, Tensor], mask: Mask, implementation: str) -> int:
    leaves = {name: each.requires_grad_() for name, each in tensors.items()}
    with Largest() as largest:
        out = attend(leaves, mask, implementation)
        out.backward(torch.ones_like(out))
    return largest.elements


# tiled


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_tiles_equal_the_definition_under_every_mask(
    draw_inputs: DrawInputs, softmax_error: SoftmaxError, dtype: torch.dtype, mask: Mask
) -> None:
    tensors = draw_inputs(queries=140, keys=300, dtype=dtype)
    assert softmax_error(VARIANT, "tiled", tensors, mask=mask) <= ANALYTIC_GATE


@pytest.mark.parametrize("shape", [(140, 300), (4, 1, 300), (2, 1, 140, 1), (2, 4, 140, 300), (1,)])
def test_tiles_give_a_bias_of_any_shape_its_gradient(
    draw_inputs: DrawInputs, softmax_error: SoftmaxError, shape: tuple[int, ...]
) -> None:
    tensors = draw_inputs(queries=140, keys=300)
    bias = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    error = softmax_error(VARIANT, "tiled", {**tensors, "bias": bias}, mask=attnkit.causal())
    assert error <= ANALYTIC_GATE


@pytest.mark.parametrize(
    ("queries", "keys"), [(1, 1), (1, 300), (300, 1), (130, 130), (129, 257), (300, 140)]
)
def test_tiles_take_any_lengths(
    draw_inputs: DrawInputs, softmax_error: SoftmaxError, queries: int, keys: int
) -> None:
    tensors = draw_inputs(queries=queries, keys=keys)
    assert softmax_error(VARIANT, "tiled", tensors, mask=attnkit.causal()) <= ANALYTIC_GATE


def test_tiles_take_a_bias_that_hides_whole_rows(draw_inputs: DrawInputs) -> None:
    bias = torch.zeros(140, 300)
    bias[3] = bias[:, 7] = float("-inf")
    out = attnkit.attention(
        **draw_inputs(queries=140, keys=300),  # type: ignore[arg-type]  # all of them are tensors
        bias=bias,
        variant=VARIANT,
        implementation="tiled",
    )
    assert not out[:, :, 3].any()
    assert out.isfinite().all()


def test_a_sink_of_minus_infinity_is_no_sink(draw_inputs: DrawInputs) -> None:
    # the first tile of queries is out of reach of all keys
    tensors = draw_inputs(queries=300, keys=140)
    sinks = torch.full((4,), float("-inf"), requires_grad=True)
    mask = attnkit.causal() & attnkit.padding([0, 130])
    rules: dict[str, Any] = {"mask": mask, "variant": VARIANT, "implementation": "tiled"}
    out = attnkit.attention(**tensors, sinks=sinks, **rules)
    out.sum().backward()
    assert torch.equal(out, attnkit.attention(**tensors, **rules))
    assert sinks.grad is not None
    assert not sinks.grad.any()


# 3e38 overflows in the products, so that 0 * inf would show; torch's kernel does not promise that
@pytest.mark.parametrize(
    ("implementation", "mask", "huge"),
    [
        ("tiled", attnkit.dense(torch.arange(150) < 77), 3e38),
        ("tiled", attnkit.causal(), 1e4),
        ("sdpa", attnkit.causal(), 1e4),
        ("onednn", attnkit.causal(), 1e4),
    ],
)
def test_hidden_values_reach_neither_outputs_nor_gradients(
    draw_inputs: DrawInputs, implementation: str, mask: Mask, huge: float
) -> None:
    def run(tensors: dict[str, Tensor]) -> tuple[Tensor, ...]:
        leaves = {name: each.clone().requires_grad_() for name, each in tensors.items()}
        out = attend(leaves, mask, implementation)[:, :, :77]
        return (out, *torch.autograd.grad(out.sin().sum(), tuple(leaves.values())))

    tensors = draw_inputs()
    expected = run(tensors)
    tensors["key"][:, :, 77:] = huge
    tensors["value"][:, :, 77:] = huge
    for got, wanted in zip(run(tensors), expected, strict=True):
        assert torch.equal(got, wanted)


# sdpa


@pytest.mark.parametrize(
    ("queries", "keys", "mask"),
    [
        (150, 150, attnkit.causal()),
        (150, 150, attnkit.full()),
        (20, 150, attnkit.full()),
        (150, 20, attnkit.full()),
        (1, 150, attnkit.causal()),
        (1, 150, attnkit.causal() & attnkit.padding([0, 70])),
        (70, 150, attnkit.padding([0, 70])),
        # torch passes over keys by 512: whole blocks are hidden
        (40, 1100, attnkit.left_padding([700, 1100])),
        (40, 1100, attnkit.padding([0, 100])),
    ],
    ids=repr,
)
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_torch_kernel_equals_the_definition_where_it_is_used(
    draw_inputs: DrawInputs,
    softmax_error: SoftmaxError,
    dtype: torch.dtype,
    queries: int,
    keys: int,
    mask: Mask,
    kv_heads: int,
) -> None:
    tensors = draw_inputs(queries=queries, keys=keys, kv_heads=kv_heads, dtype=dtype)
    assert softmax_error(VARIANT, "sdpa", tensors, mask=mask, scale=0.5) <= ANALYTIC_GATE


def test_torch_kernel_takes_any_strides(draw_inputs: DrawInputs) -> None:
    tensors = draw_inputs(kv_heads=4)
    mixed = {name: each.permute(2, 3, 0, 1).contiguous() for name, each in tensors.items()}
    strided = {name: each.permute(2, 3, 0, 1) for name, each in mixed.items()}
    assert strided["key"].stride(-1) != 1
    rules: dict[str, Any] = {"mask": attnkit.causal(), "variant": VARIANT}
    got = attnkit.attention(**strided, **rules, implementation="sdpa")
    assert torch.equal(got, attnkit.attention(**tensors, **rules, implementation="sdpa"))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"mask": attnkit.causal()}, "upper left"),
        ({"mask": attnkit.sliding_window(9)}, "window"),
        ({"mask": attnkit.documents(torch.zeros(2, 150, dtype=torch.int64))}, "documents"),
        ({"mask": attnkit.dense(torch.ones(70, 150, dtype=torch.bool))}, "dense"),
        ({"mask": attnkit.padding([3, 4]) | attnkit.padding([5, 6])}, "union"),
        ({"bias": torch.zeros(150)}, "bias"),
        ({"softcap": 2.0}, "softcap"),
        ({"sinks": torch.zeros(4)}, "sinks"),
        ({"dropout_p": 0.5}, "dropout"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_torch_kernel_refuses_what_it_would_get_wrong_or_materialise(
    draw_inputs: DrawInputs, options: dict[str, Any], reason: str
) -> None:
    tensors = draw_inputs(queries=70)
    with pytest.raises(UnsupportedError, match=reason):
        attnkit.attention(**tensors, **options, variant=VARIANT, implementation="sdpa")


def test_torch_kernel_refuses_causal_with_padding(draw_inputs: DrawInputs) -> None:
    mask = attnkit.causal() & attnkit.padding([3, 4])
    with pytest.raises(UnsupportedError, match="L x S tensor"):
        attnkit.attention(
            **draw_inputs(),  # type: ignore[arg-type]  # all of them are tensors
            mask=mask,
            variant=VARIANT,
            implementation="sdpa",
        )


def test_torch_kernel_refuses_another_value_width(draw_inputs: DrawInputs) -> None:
    tensors = draw_inputs(value_width=5)
    with pytest.raises(UnsupportedError, match="value_width"):
        attnkit.attention(
            **tensors,  # type: ignore[arg-type]  # all of them are tensors
            variant=VARIANT,
            implementation="sdpa",
        )


# the variant

ONEDNN = "flash.onednn" if stays_exact() else None
"""What is cheapest over many keys, on a machine whose oneDNN keeps float32 in float32."""


@pytest.mark.parametrize(
    ("queries", "mask", "dtype", "gained", "chosen"),
    [
        (2048, attnkit.causal(), torch.float32, 2.0, ONEDNN or "flash.sdpa"),
        (2048, attnkit.causal(), torch.float32, 1.0, "flash.sdpa"),
        (2048, attnkit.causal(), torch.float16, 2.0, ONEDNN or "flash.tiled"),
        (64, attnkit.causal(), torch.float32, 2.0, "flash.tiled"),
        (1, attnkit.causal(), torch.float32, 2.0, "flash.sdpa"),
        (1, attnkit.causal() & attnkit.sliding_window(9), torch.float32, 2.0, "flash.tiled"),
    ],
)
def test_auto_takes_the_cheapest_that_can(
    draw_inputs: DrawInputs,
    monkeypatch: pytest.MonkeyPatch,
    queries: int,
    mask: Mask,
    dtype: torch.dtype,
    gained: float,
    chosen: str,
) -> None:
    monkeypatch.setattr(products, "gain", lambda: gained)
    tensors = draw_inputs(queries=queries, keys=2048, width=64, value_width=64, dtype=dtype)
    problem = problem_of(**tensors, mask=mask)  # type: ignore[arg-type]  # all are tensors
    assert explain_choice(VARIANT, problem).chosen == chosen


@pytest.mark.parametrize(
    ("implementation", "mask"),
    [
        ("tiled", attnkit.causal()),
        ("tiled", attnkit.causal() & attnkit.padding([900])),
        ("sdpa", attnkit.causal()),
        ("onednn", attnkit.causal()),
        ("sdpa", attnkit.padding([900])),
    ],
    ids=repr,
)
def test_no_tensor_grows_with_l_times_s(
    draw_inputs: DrawInputs, implementation: str, mask: Mask
) -> None:
    tensors = draw_inputs(queries=2048, keys=2048, batch=1, heads=2, kv_heads=1)
    # the largest input has 2 * 2048 * 8 elements
    assert largest_tensor(tensors, mask, implementation) <= TILE_ELEMENTS


def test_the_meter_of_tensors_sees_those_of_the_reference(draw_inputs: DrawInputs) -> None:
    tensors = draw_inputs(queries=512, keys=512, batch=1, heads=2, kv_heads=1)
    assert largest_tensor(tensors, attnkit.causal(), "reference") >= 2 * 512**2


def test_tiles_are_one_operator_of_a_graph_that_serves_every_length(
    draw_inputs: DrawInputs,
) -> None:
    def attend(*given: Tensor) -> Tensor:
        query, key, value, bias, sinks, lengths = given
        return attnkit.attention(
            query,
            key,
            value,
            mask=attnkit.causal() & attnkit.sliding_window(9) & attnkit.padding(lengths),
            bias=bias,
            sinks=sinks,
            softcap=2.0,
            variant=VARIANT,
            implementation="tiled",
        )

    torch.compiler.reset()
    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(attend, backend=graphs, fullgraph=True, dynamic=True)
    for length in (150, 190):
        drawn = draw_inputs(queries=length, keys=length).values()
        heads = next(iter(drawn)).shape[1]
        bias = torch.linspace(-1, 1, length).expand(heads, length, length)
        leaves = [each.requires_grad_() for each in (*drawn, bias.clone(), torch.ones(heads))]
        lengths = torch.full((len(leaves[0]),), length - 3)
        out, expected = compiled(*leaves, lengths), attend(*leaves, lengths)
        grads = torch.autograd.grad(out.sin().sum(), leaves)
        wanted = torch.autograd.grad(expected.sin().sum(), leaves)
        assert torch.equal(out, expected)
        assert all(torch.equal(*pair) for pair in zip(grads, wanted, strict=True))
        with pytest.raises(MaskError, match=f"must lie in 0..S = 0..{length}"):
            compiled(*leaves, lengths + 9)
    operator = torch.ops.attnkit.flash_tiled.default
    asked = [[node.target for node in each.graph.nodes] for each in graphs.graphs]
    # a trace that comes to nothing leaves a graph without nodes
    assert [each.count(operator) for each in asked if each] == [1]
