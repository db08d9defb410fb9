"""What is peculiar to multi-head attention; the conformance suite does the rest."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

import attnkit

# outputs are means of order 1 in float32; a few roundings of each of 16 terms
CLOSE = {"rtol": 0.0, "atol": 32 * 2.0**-24}
FORMS = ["reference", "eager", "sdpa"]


def tensors(length: int = 6, keys: int = 6) -> list[torch.Tensor]:
    torch.manual_seed(0)
    shapes = [(2, 4, length, 8), (2, 2, keys, 8), (2, 2, keys, 8)]
    return [torch.randn(shape) for shape in shapes]


@pytest.mark.parametrize("implementation", FORMS)
def test_it_is_what_torch_computes(implementation: str) -> None:
    query, key, value = tensors()
    expected = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    found = attnkit.attention(
        query,
        key,
        value,
        mask=attnkit.causal(),
        variant="multi_head",
        implementation=implementation,
    )
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_causal_is_aligned_to_the_last_key(implementation: str) -> None:
    query, key, value = tensors(length=2, keys=6)
    lower_right = torch.ones(2, 6, dtype=torch.bool).tril(4)
    expected = scaled_dot_product_attention(
        query, key, value, attn_mask=lower_right, enable_gqa=True
    )
    asked = {"variant": "multi_head", "implementation": implementation}
    found = attnkit.attention(query, key, value, mask=attnkit.causal(), **asked)
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_more_queries_than_keys_leave_the_first_ones_empty(implementation: str) -> None:
    inputs = [x.requires_grad_() for x in tensors(length=6, keys=2)]
    asked = {"variant": "multi_head", "implementation": implementation}
    out = attnkit.attention(*inputs, mask=attnkit.causal(), **asked)
    assert not out[:, :, :4].any()
    assert out[:, :, 4:].all()
    out.square().sum().backward()
    gradient = inputs[0].grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert not gradient[:, :, :4].any()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_dropout_keeps_the_mean_and_scales_what_it_keeps(implementation: str) -> None:
    # uniform weights over 64 keys whose values are 1: the output is kept / (64 (1 - p))
    p, keys = 0.25, 64
    query, key = torch.zeros(1, 1, 4096, 4), torch.zeros(1, 1, keys, 4)
    torch.manual_seed(0)
    out = attnkit.attention(
        query,
        key,
        torch.ones(1, 1, keys, 1),
        dropout_p=p,
        variant="multi_head",
        implementation=implementation,
    )
    kept = out * keys * (1 - p)
    torch.testing.assert_close(kept, kept.round(), rtol=0, atol=keys * 2.0**-20)
    # 4096 means of 64 draws; five standard deviations of their mean
    deviation = (p / (1 - p) / keys / 4096) ** 0.5
    assert abs(out.mean().item() - 1) < 5 * deviation


def test_a_float32_bias_is_not_rounded_to_half_inputs() -> None:
    query, key, value = (x.bfloat16() for x in tensors())
    # bfloat16 has 8 bits: 256.5 would become 256
    bias = torch.tensor([256.0, 256.5, 0.0, 0.0, 0.0, 0.0])
    out = [
        attnkit.attention(query, key, value, bias=bias, variant="multi_head", implementation=name)
        for name in ("reference", "sdpa")
    ]
    # one rounding of the output to bfloat16, whose values are below 4
    torch.testing.assert_close(out[0], out[1], rtol=0, atol=4 * 2.0**-8)
