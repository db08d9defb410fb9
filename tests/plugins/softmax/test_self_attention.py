"""What is peculiar to self-attention: one head, and weights on request."""

from __future__ import annotations

import pytest
import torch

import attnkit
from attnkit.errors import ShapeError, StateError, UnsupportedError

# rows of at most 7 weights that sum to 1
CLOSE = {"rtol": 0.0, "atol": 16 * 2.0**-24}


def layer(**options: bool | int) -> torch.nn.Module:
    torch.manual_seed(0)
    return attnkit.create("self_attention", embed_dim=16, **options)


def tokens() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 7, 16)


def test_the_weights_explain_the_output() -> None:
    built, x = layer(is_causal=True), tokens()
    y, weights = built(x, need_weights=True)
    assert weights.shape == (2, 7, 7)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 7), **CLOSE)
    assert not weights.triu(1).any()
    torch.testing.assert_close(built.out_proj(weights @ built.v_proj(x)), y, **CLOSE)


def test_weights_are_zero_at_padding_and_in_empty_rows() -> None:
    _, weights = layer()(tokens(), mask=attnkit.padding([3, 0]), need_weights=True)
    assert not weights[0, :, 3:].any()
    assert not weights[1].any()


def test_a_step_returns_the_weights_over_all_tokens_so_far() -> None:
    built, x = layer(is_causal=True), tokens()
    _, whole = built(x, need_weights=True)
    _, state = built(x[:, :6], state=built.init_state(2))
    y, state, weights = built(x[:, 6:], state=state, need_weights=True)
    torch.testing.assert_close(weights, whole[:, 6:], **CLOSE)
    torch.testing.assert_close(y, built(x)[:, 6:], **CLOSE)
    assert state.tokens == 7


def test_a_second_head_is_refused() -> None:
    query = torch.randn(1, 2, 3, 4)
    with pytest.raises(UnsupportedError, match="num_heads: needs 2, offers 1"):
        attnkit.attention(query, query, query, variant="self_attention")


def test_wrong_inputs_are_refused_by_name() -> None:
    built, x = layer(is_causal=True), tokens()
    with pytest.raises(ShapeError, match=r"D = 16, got \(2, 7, 8\)"):
        built(x[..., :8])
    with pytest.raises(StateError, match="holds 3 samples, the call has 2"):
        built(x, state=built.init_state(3))
    with pytest.raises(UnsupportedError, match="set is_causal=True"):
        layer().init_state(2)
