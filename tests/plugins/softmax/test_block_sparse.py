"""Block-sparse attention: gathered blocks against the definition, and the layer's pattern."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from pydantic import ValidationError
from torch.utils._python_dispatch import TorchDispatchMode

import attnkit
from attnkit.errors import UnsupportedError
from attnkit_contracts.judging.units import ANALYTIC_GATE
from attnkit_plugins.softmax.block_sparse import VARIANT, BlockSparseConfig

if TYPE_CHECKING:
    from torch import Tensor

    from attnkit import Mask
    from conftest import DrawInputs, SoftmaxError

CAUSAL = attnkit.causal()


def coin(*shape: int, share: float = 0.4) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(5)) < share


def attend(tensors: dict[str, Tensor], mask: Mask, **options: Any) -> Tensor:
    return attnkit.attention(**tensors, mask=mask, variant=VARIANT, **options)


# 150 keys in blocks of 16: ten, the last of 6 keys
MAPS = {
    "one for all": coin(10, 10),
    "by head": coin(1, 4, 10, 10),
    "by sample": coin(2, 1, 10, 10),
    "by sample and head": coin(2, 4, 10, 10),
    "nothing": coin(10, 10, share=0.0),
    "everything": coin(10, 10, share=1.0),
    "the last block alone": torch.arange(10).expand(10, 10) == 9,
}


class Logits(TorchDispatchMode):
    """Count what is exponentiated."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket is torch.ops.aten.exp2_:
            self.elements += args[0].numel()
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("block_map", MAPS.values(), ids=MAPS)
def test_blocks_equal_the_definition_for_every_map(
    draw_inputs: DrawInputs, softmax_error: SoftmaxError, dtype: torch.dtype, block_map: Tensor
) -> None:
    mask = attnkit.blocks(block_map, 16)
    tensors = draw_inputs(dtype=dtype)
    assert softmax_error(VARIANT, "gathered", tensors, mask=mask) <= ANALYTIC_GATE


@pytest.mark.parametrize("base", [CAUSAL, attnkit.full()], ids=repr)
@pytest.mark.parametrize(
    ("queries", "keys", "size"),
    [(1, 1, 4), (1, 150, 16), (70, 150, 16), (149, 150, 16), (150, 150, 1), (40, 150, 200)],
)
def test_blocks_lie_at_the_positions_of_keys(
    draw_inputs: DrawInputs,
    softmax_error: SoftmaxError,
    base: Mask,
    queries: int,
    keys: int,
    size: int,
) -> None:
    count = -(-keys // size)
    mask = base & attnkit.blocks(coin(count, count, share=0.6), size)
    tensors = draw_inputs(queries=queries, keys=keys)
    assert softmax_error(VARIANT, "gathered", tensors, mask=mask) <= ANALYTIC_GATE


def test_values_in_hidden_places_reach_neither_outputs_nor_gradients(
    draw_inputs: DrawInputs,
) -> None:
    # key 100 is hidden inside blocks that are visible, block 3 as a whole
    block_map = coin(10, 10, share=0.7)
    block_map[:, 3] = False
    mask = attnkit.blocks(block_map, 16) & attnkit.dense(torch.arange(150) != 100)

    def run(tensors: dict[str, Tensor]) -> tuple[Tensor, ...]:
        leaves = {name: each.clone().requires_grad_() for name, each in tensors.items()}
        out = attend(leaves, mask, softcap=2.0, implementation="gathered")
        return (out, *torch.autograd.grad(out.sin().sum(), tuple(leaves.values())))

    tensors = draw_inputs()
    expected = run(tensors)
    for place in (slice(48, 64), slice(100, 101)):
        # overflows in the products, so that 0 * inf would show
        tensors["key"][:, :, place] = tensors["value"][:, :, place] = 3e38
    for got, wanted in zip(run(tensors), expected, strict=True):
        assert torch.equal(got, wanted)


def test_work_is_that_of_the_visible_blocks(draw_inputs: DrawInputs) -> None:
    block_map = coin(2, 4, 8, 8, share=0.2)
    with Logits() as logits:
        attend(
            draw_inputs(queries=128, keys=128),
            attnkit.blocks(block_map, 16),
            implementation="gathered",
        )
    assert logits.elements == int(block_map.sum()) * 16 * 16


def test_what_causal_hides_is_no_work(draw_inputs: DrawInputs) -> None:
    block_map = coin(8, 8, share=1.0)
    with Logits() as logits:
        attend(
            draw_inputs(queries=128, keys=128, batch=1),
            CAUSAL & attnkit.blocks(block_map, 16),
            implementation="gathered",
        )
    assert logits.elements == 4 * int(block_map.tril().sum()) * 16 * 16


@pytest.mark.parametrize(
    ("mask", "options", "reason"),
    [
        (CAUSAL, {}, "only masks with blocks"),
        (attnkit.blocks(coin(10, 10), 16) | CAUSAL, {}, "union"),
        (attnkit.blocks(coin(10, 10), 16), {"dropout_p": 0.1}, "dropout"),
        (attnkit.blocks(coin(10, 10), 16), {"bias": torch.zeros(150)}, "bias"),
    ],
)
def test_what_it_cannot_honour_is_refused(
    draw_inputs: DrawInputs, mask: Mask, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        attend(draw_inputs(), mask, **options)


def test_compiling_takes_the_reference_and_refuses_gathered(draw_inputs: DrawInputs) -> None:
    mask = attnkit.blocks(coin(10, 10), 16)
    torch.compiler.reset()
    run = torch.compile(attend, backend="eager", fullgraph=True)
    tensors = draw_inputs()
    torch.testing.assert_close(run(tensors, mask), attend(tensors, mask))
    with pytest.raises(Exception, match="compile"):
        run(tensors, mask, implementation="gathered")


# the layer


def layer(**options: Any) -> Any:
    torch.manual_seed(0)
    given = {"embed_dim": 16, "num_heads": 4, "num_kv_heads": 2, **options}
    return attnkit.create("block_sparse", dtype=torch.float64, **given)


def tokens() -> Tensor:
    return torch.randn(2, 22, 16, generator=torch.Generator().manual_seed(3)).double()


@pytest.mark.parametrize("is_causal", [True, False])
def test_a_layer_sees_local_and_global_blocks(*, is_causal: bool) -> None:
    # 22 tokens in blocks of 4: block 3 sees itself, block 2, block 4 unless causal, and block 0
    x = tokens().requires_grad_()
    made = layer(block_size=4, local_blocks=2, global_blocks=1, is_causal=is_causal)
    made(x)[:, 13].sum().backward()
    assert x.grad is not None
    seen = x.grad.abs().sum((0, 2)).nonzero()[:, 0].tolist()
    expected = [*range(4), *range(8, 14 if is_causal else 20)]
    assert seen == expected


def test_a_layer_without_a_pattern_takes_the_map_of_each_call() -> None:
    patterned, plain = layer(block_size=4, local_blocks=2), layer()
    plain.load_state_dict(patterned.state_dict())
    block = torch.arange(6)
    mask = attnkit.blocks((block[:, None] - block).abs() < 2, 4)
    assert torch.equal(plain(tokens(), mask=mask), patterned(tokens()))
    with pytest.raises(UnsupportedError, match="only masks with blocks"):
        plain(tokens())


def test_steps_of_a_layer_equal_the_whole() -> None:
    made = layer(block_size=4, local_blocks=2, global_blocks=1, is_causal=True, rotary_base=1e4)
    state = made.init_state(2)
    ys = []
    for chunk in torch.split(tokens(), [5, 1, 1, 9, 6], 1):
        y, state = made(chunk, state=state)
        ys.append(y)
    torch.testing.assert_close(torch.cat(ys, 1), made(tokens()))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"block_size": 4}, "give both or neither"),
        ({"local_blocks": 4}, "give both or neither"),
        ({"global_blocks": 1}, "needs block_size and local_blocks"),
        ({"block_size": 4, "local_blocks": 1, "window_size": 3}, "excludes window_size"),
        ({"block_size": 4, "local_blocks": 1, "context_dim": 3}, "excludes context_dim"),
    ],
)
def test_an_incomplete_pattern_is_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        BlockSparseConfig(embed_dim=16, num_heads=4, **options)
