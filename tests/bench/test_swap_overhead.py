"""What a swap adds to a Llama layer at one token, over the model's own route through sdpa.

Run with ``pytest tests/bench/test_swap_overhead.py --benchmark-enable --benchmark-only``. Layers
are called the way the model calls them, one after the other with one mask, which a pass makes anew;
what differs between the two is the attention function alone. A pass takes `LAYERS` times as long
as a layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import attnkit
from attnkit_plugins.hosts.transformers.dispatch import attend

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

LAYERS = 32
CONFIG = transformers.LlamaConfig(
    vocab_size=97,
    hidden_size=512,
    intermediate_size=256,
    num_hidden_layers=LAYERS,
    num_attention_heads=8,
    num_key_value_heads=2,
    pad_token_id=0,
)
TOKEN = torch.tensor([[5]])
HEADS: dict[str, torch.Tensor] = {
    "query": torch.randn(1, 8, 1, 64),
    "key": torch.randn(1, 2, 33, 64),
    "value": torch.randn(1, 2, 33, 64),
}
HIDDEN = torch.ones(1, 1, 1, 33, dtype=torch.bool)
HIDDEN[..., :3] = False


@pytest.fixture(params=["own", "multi_head", "flash"])
def route(request: pytest.FixtureRequest) -> Any:
    """Return the model, swapped or not, and the attention function that its layers call."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(CONFIG).eval()
    if request.param == "own":
        return model, sdpa_attention_forward
    attnkit.swap(model, request.param)
    return model, attend


@pytest.mark.benchmark(group=f"attention of {LAYERS} layers, one token")
@pytest.mark.parametrize("mask", [None, HIDDEN], ids=["no mask", "padded"])
def test_attention_of_the_layers(benchmark: BenchmarkFixture, route: Any, mask: Any) -> None:
    model, function = route
    layers = [layer.self_attn for layer in model.model.layers]

    def attend_once() -> None:
        made = None if mask is None else mask.clone()
        for layer in layers:
            function(layer, **HEADS, attention_mask=made, dropout=0.0, scaling=0.125)

    with torch.no_grad():
        benchmark(attend_once)


@pytest.mark.benchmark(group=f"{LAYERS} layers, one token")
def test_forward_pass(benchmark: BenchmarkFixture, route: Any) -> None:
    model, _ = route
    with torch.inference_mode():
        benchmark(model, TOKEN, use_cache=False)
