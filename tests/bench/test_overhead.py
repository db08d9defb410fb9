"""What `attnkit.attention` adds to the torch call it makes; run ``pytest tests/bench``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

import attnkit

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

QUERY = torch.randn(1, 2, 4, 8)


@pytest.mark.benchmark(group="tiny call")
def test_direct_call(benchmark: BenchmarkFixture) -> None:
    with torch.no_grad():
        benchmark(scaled_dot_product_attention, QUERY, QUERY, QUERY)


@pytest.mark.benchmark(group="tiny call")
@pytest.mark.parametrize("variant", ["multi_head", "auto"])
def test_call_by_name(benchmark: BenchmarkFixture, variant: str) -> None:
    with torch.no_grad():
        benchmark(attnkit.attention, QUERY, QUERY, QUERY, variant=variant)
