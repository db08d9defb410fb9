"""Gated linear attention: its definition, and where its decays come from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from recurrence_cases import GATED, GATED_LAYERS, NAMES, Form, assert_close, draw

import attnkit
from attnkit.errors import UnsupportedError
from attnkit_plugins.recurrence.gated_linear import VARIANT
from attnkit_plugins.recurrence.gated_linear.layer import GatedLinearLayer


def layer(dtype: torch.dtype = torch.float64, **options: Any) -> GatedLinearLayer:
    built = GATED_LAYERS[0].layer(dtype, **options)
    assert isinstance(built, GatedLinearLayer)
    return built


@pytest.mark.parametrize("form", GATED, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_score_decays_by_every_token_after_its_key(name: str, form: Form) -> None:
    query, key, value, log_decay, _ = form.inputs(40)
    per_channel = (
        log_decay if form.decay == "channel" else log_decay[..., None].expand(-1, -1, -1, 6)
    )
    sums = per_channel.cumsum(2)
    between = (sums[:, :, :, None] - sums[:, :, None]).clamp(max=0).exp()  # (B, H, L, L, E)
    q, k = (x.repeat_interleave(2, 1) for x in (query, key))
    scores = torch.einsum("bhie,bhje,bhije->bhij", q, k, between).tril()
    out, _ = attnkit.recurrence(
        query, key, value, variant=VARIANT, log_decay=log_decay, scale=0.5, implementation=name
    )
    assert_close(out, 0.5 * scores @ value, torch.float64)


@pytest.mark.parametrize("form", GATED, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_fixed_decay_is_retention(name: str, form: Form) -> None:
    query, key, value, log_decay, _ = form.inputs(30)
    gamma = 1 - 2.0 ** (-5 - torch.arange(4, dtype=torch.float64))  # (H,)
    fixed = gamma.log().reshape(1, 4, *[1] * (log_decay.dim() - 2)).expand_as(log_decay)
    distance = torch.arange(30)[:, None] - torch.arange(30)
    powers = (gamma[:, None, None] ** distance.clamp(min=0)).tril()  # (H, L, L)
    q, k = (x.repeat_interleave(2, 1) for x in (query, key))
    out, _ = attnkit.recurrence(
        query, key, value, variant=VARIANT, log_decay=fixed, implementation=name
    )
    assert_close(out, (q @ k.mT * powers) @ value, torch.float64)


def test_spans_of_many_chunks_agree_with_the_reference() -> None:
    channel = GATED[1]
    given = channel.inputs(75, dtype=torch.float32)
    for got, expected in zip(
        channel.run(given, "chunked", 4), channel.run(given, "reference"), strict=True
    ):
        assert_close(got, expected, torch.float32)


def test_a_call_without_decay_is_refused() -> None:
    query, key, value, *_ = GATED[0].inputs(5)
    with pytest.raises(UnsupportedError, match="log_decay"):
        attnkit.recurrence(query, key, value, variant=VARIANT)


@pytest.mark.parametrize("decay", ["channel", "head", "fixed"])
def test_the_layer_is_its_definition(decay: str) -> None:
    built, x = layer(decay=decay, value_head_dim=5), draw(2, 9, 12, seed=5)
    q, k, v, gate = (
        project(x).unflatten(-1, (4, -1)).transpose(1, 2)
        for project in (built.q_proj, built.k_proj, built.v_proj, built.gate_proj)
    )
    state, outs = torch.zeros(2, 4, 3, 5, dtype=x.dtype), []
    for t in range(9):
        if decay == "fixed":
            alpha = (1 - 2.0 ** (-5 - torch.arange(4.0, dtype=x.dtype)))[:, None]  # (H, 1)
        else:
            assert built.decay_proj is not None
            alpha = built.decay_proj(x[:, t]).sigmoid().sqrt().unflatten(-1, (4, -1))  # (B, H, E)
        state = alpha[..., None] * state + k[:, :, t, :, None] * v[:, :, t, None]
        outs.append(3**-0.5 * torch.einsum("bhe,bhev->bhv", q[:, :, t], state))
    out = torch.stack(outs, 2)
    normed = out / (out.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    gated = normed * gate * gate.sigmoid()
    expected = built.out_proj(gated.transpose(1, 2).flatten(2))
    assert_close(built(x), expected, torch.float64)


def test_decays_are_computed_in_float32_also_in_half_precision_and_under_autocast() -> None:
    fixed = layer(torch.bfloat16, decay="fixed")
    decays = fixed.log_decay(draw(1, 2, 12, seed=5).bfloat16())
    assert decays.dtype == torch.float32
    exact = torch.log1p(-(2.0 ** -torch.arange(5.0, 9.0)))
    torch.testing.assert_close(decays[0, :, 0], exact)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = layer(torch.float32)(
            draw(2, 5, 12, seed=5).float(), state=layer(torch.float32).init_state(2)
        )
    assert y.isfinite().all()
    assert state.memory.dtype == torch.float32
