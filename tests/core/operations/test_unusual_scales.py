"""A scale of 0 weighs all keys alike, one below 0 turns the order round; kernels trip over both."""

from __future__ import annotations

import pytest
import torch

import attnkit


@pytest.mark.parametrize(
    ("variant", "implementation"),
    [("flash", "sdpa"), ("flash", "tiled"), ("flash", "onednn"), ("multi_head", "eager")],
)
def test_a_scale_of_0_gives_the_mean_of_the_visible_values(
    variant: str, implementation: str
) -> None:
    query, key, value = torch.randn(3, 3, 4, 7, 16, generator=torch.Generator().manual_seed(0))
    query.requires_grad_()

    out = attnkit.attention(
        query,
        key,
        value,
        mask=attnkit.causal(),
        scale=0.0,
        variant=variant,
        implementation=implementation,
    )
    (in_query,) = torch.autograd.grad(out.sum(), [query])

    counts = torch.arange(1, 8)[:, None]
    torch.testing.assert_close(out, value.cumsum(2) / counts)
    assert not in_query.any()


@pytest.mark.parametrize(
    ("variant", "implementation"),
    [("flash", "sdpa"), ("flash", "tiled"), ("multi_head", "sdpa"), ("multi_head", "eager")],
)
def test_a_negative_scale_is_that_of_the_negated_queries(variant: str, implementation: str) -> None:
    query, key, value = torch.randn(3, 1, 2, 150, 24, generator=torch.Generator().manual_seed(0))
    given = {"mask": attnkit.causal(), "variant": variant, "implementation": implementation}

    out = attnkit.attention(query, key, value, scale=-0.2, **given)  # type: ignore[arg-type]  # by name

    torch.testing.assert_close(
        out,
        attnkit.attention(-query, key, value, scale=0.2, **given),  # type: ignore[arg-type]  # by name
    )
