"""Models that are sharded already (FSDP2), which gives modules classes of other names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist
import transformers
from tiny_models import SMALL
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import attnkit
from attnkit.errors import SwapRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def build() -> Any:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL)).eval()


@pytest.fixture
def sharded(tmp_path: Path) -> Iterator[Any]:
    store = f"file://{tmp_path / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        mesh, model = init_device_mesh("cpu", (1,)), build()
        for layer in model.model.layers:
            fully_shard(layer.self_attn, mesh=mesh)
            fully_shard(layer, mesh=mesh)
        yield fully_shard(model, mesh=mesh)
    finally:
        dist.destroy_process_group()


def test_survey_names_layers_as_before_sharding(sharded: Any) -> None:
    told = [(site.path, site.layer) for site in attnkit.survey(sharded)]
    assert told == [(site.path, site.layer) for site in attnkit.survey(build())]


def test_receipt_and_patterns_of_types_fit_after_sharding(sharded: Any) -> None:
    receipt = attnkit.swap(build(), "flash").receipt
    attnkit.reapply(sharded, receipt).restore()
    attnkit.swap(sharded, {"type:LlamaAttention": "flash"}).restore()


def test_dense_layer_that_is_sharded_is_refused(sharded: Any) -> None:
    plan: Any = {"*.mlp": {"variant": "moe", "num_experts": 2, "top_k": 1}}
    with pytest.raises(SwapRefusedError, match="LlamaMLP are sharded; swap first"):
        attnkit.swap(sharded, plan)
