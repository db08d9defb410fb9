"""Recurrences under several threads, and in leak checks that must tell rounding from a leak."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from tiny_models import GQA

import attnkit

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def switching() -> Iterator[None]:
    """Let threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("switching")
def test_threads_that_share_a_model_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**GQA)).eval().double()
    attnkit.swap(model, "gated_linear", accept="different")
    prompts = torch.randint(1, 97, (4, 1, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = [model(ids, use_cache=True).logits for ids in prompts]
    furthest: list[float] = []

    def ask(ids: torch.Tensor, want: torch.Tensor) -> None:
        with torch.no_grad():
            for _ in range(20):
                got = model(ids, use_cache=True).logits
                furthest.append(float((got - want).abs().max()))

    # a tensor iterates over its first dimension
    pairs = zip(prompts, wanted, strict=True)
    threads = [threading.Thread(target=ask, args=pair) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # an error in a thread leaves its answers out
    assert len(furthest) == 80
    assert max(furthest) < 1e-9


@pytest.mark.parametrize("seed", range(2))
def test_rounding_between_the_sites_is_no_leak(seed: int) -> None:
    torch.manual_seed(seed)
    # experts see their tokens in batches, so their rounding depends on the other tokens
    config = transformers.MixtralConfig(**GQA, num_local_experts=8, num_experts_per_tok=2)
    model: Any = transformers.MixtralForCausalLM(config).eval()
    receipt = attnkit.swap(model, "linear", accept="different").receipt
    assert {leak.outcome for leak in receipt.leaks} <= {"equal", "rounding", "refused"}
