"""Layers call their children and go by what comes out, wherever and as whatever the weights rest.

Weights rest on the meta device while they are offloaded, have no dtype of their own once they are
quantised, and are cut up and of another dtype where they are sharded.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import accelerate
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

import attnkit
from attnkit.errors import DtypeError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LAYERS: dict[str, dict[str, Any]] = {
    "block_sparse": {"num_heads": 4, "block_size": 4, "local_blocks": 1},
    "flash": {"num_heads": 4, "is_causal": True, "sinks": True},
    "gated_linear": {"num_heads": 4},
    "linear": {"num_heads": 4},
    "moe": {"hidden_dim": 16, "num_experts": 4},
    "multi_head": {"num_heads": 4, "is_causal": True, "projection_bias": True},
    "self_attention": {"is_causal": True},
    "sliding_window": {"num_heads": 4, "window_size": 3, "is_causal": True},
    "state_space": {"num_heads": 4},
}
STEPWISE = [name for name in LAYERS if name != "block_sparse"]
every_layer = pytest.mark.parametrize("name", LAYERS)
every_stepwise_layer = pytest.mark.parametrize("name", STEPWISE)


def made(name: str) -> Any:
    torch.manual_seed(0)
    return attnkit.create(name, embed_dim=32, **LAYERS[name]).eval()


def tokens() -> torch.Tensor:
    return torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(1))


def linears(layer: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    return [
        (parent, name, child)
        for parent in layer.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear)
    ]


def stepped(layer: Any, x: torch.Tensor, state: Any = None) -> torch.Tensor:
    state, outs = layer.init_state(2) if state is None else state, []
    for chunk in x.split((5, 1, 2), 1):
        y, state = layer(chunk, state=state)
        outs.append(y)
    return torch.cat(outs, 1)


def offloaded(layer: Any) -> Any:
    return accelerate.cpu_offload(layer, execution_device="cpu")


class Adapted(nn.Module):
    """Adds to what a child computes, as low-rank adapters do; it has no weight to read."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.more = nn.Linear(base.in_features, base.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.base(x) + self.more(x)
        return out


@every_layer
def test_hook_on_every_child_with_weights_runs(name: str) -> None:
    layer, ran = made(name), []
    children = {path: each for path, each in layer.named_modules() if path}
    for path, child in children.items():
        child.register_forward_hook(lambda *_, path=path: ran.append(path))
    layer(tokens())
    assert set(ran) == set(children)


@every_layer
def test_adapter_over_every_child_takes_part_and_learns(name: str) -> None:
    layer, x = made(name), tokens()
    for parent, path, child in linears(layer):
        before = layer(x)
        adapted = Adapted(child)
        setattr(parent, path, adapted)
        after = layer(x)
        assert not torch.equal(before, after)
        after.square().sum().backward()
        assert bool(adapted.more.weight.grad.any())
    if name in STEPWISE:
        assert stepped(layer, x).shape == x.shape


@every_layer
@torch.no_grad()
def test_layer_computes_the_same_bits_once_it_is_offloaded(name: str) -> None:
    layer, x = made(name), tokens()
    expected = layer(x)
    assert torch.equal(offloaded(layer)(x), expected)


@every_stepwise_layer
@torch.no_grad()
def test_layer_steps_on_from_a_state_of_its_own_once_it_is_offloaded(name: str) -> None:
    layer, x = made(name), tokens()
    state, expected = layer.init_state(2), stepped(layer, x)
    offloaded(layer)
    assert torch.equal(stepped(layer, x), expected)
    assert torch.equal(stepped(layer, x, state), expected)


@every_layer
@torch.no_grad()
def test_layer_is_near_what_it_was_once_its_projections_are_quantised(name: str) -> None:
    layer, x = made(name), tokens()
    whole = layer(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", UserWarning)
        quantised = torch.ao.quantization.quantize_dynamic(layer, {nn.Linear})
        outs = [quantised(x)]
        if name in STEPWISE:
            outs.append(stepped(quantised, x))
    for out in outs:
        # 8 bits: 1/256 of the largest in weights and in inputs, through two products
        assert float((out - whole).norm() / whole.norm()) < 0.05


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Any]:
    store = f"file://{tmp_path / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")
@torch.no_grad()
def test_layers_of_sharded_children_take_the_dtype_that_those_compute_in(mesh: Any) -> None:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    for name in ("multi_head", "self_attention", "linear", "gated_linear", "state_space"):
        layer, x = made(name), tokens().bfloat16()
        for _, _, child in linears(layer):
            fully_shard(child, mesh=mesh, mp_policy=policy)
        assert layer(x).dtype == torch.bfloat16
        assert stepped(layer, x).dtype == torch.bfloat16


@every_stepwise_layer
def test_state_that_holds_nothing_goes_on_in_the_dtype_of_the_first_tokens(name: str) -> None:
    layer, x = made(name), tokens().double()
    state = layer.init_state(2)
    layer.double()
    assert torch.equal(stepped(layer, x, state), stepped(layer, x))


@every_layer
def test_tokens_of_another_dtype_than_weights_that_are_there_are_refused(name: str) -> None:
    with pytest.raises(DtypeError, match="float32, got float64"):
        made(name)(tokens().double())
