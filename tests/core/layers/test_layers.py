"""The layer of softmax variants, and how layers are made by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import attnkit
from attnkit.errors import (
    ArgumentError,
    AttnkitError,
    ConfigError,
    DtypeError,
    ShapeError,
    StateError,
    UnknownVariantError,
    UnsupportedError,
)
from attnkit.layers import MadeLayer, New

# outputs are of order 1; sums over at most 64 float32 products, each of several steps
CLOSE = {"rtol": 0.0, "atol": 64 * 2.0**-24}


def layer(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return attnkit.create("multi_head", **{"embed_dim": 32, "num_heads": 4, **options}).eval()


def tokens(batch: int = 2, length: int = 9, width: int = 32) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(batch, length, width)


class MeanLayer(MadeLayer[attnkit.LayerConfig]):
    def make(self, new: New) -> None:
        width = self.config.embed_dim
        self.out_proj = new.linear(width, width, bias=False)
        self.gain, self.drawn = new.filled(2.0, width), new.empty(width, 3)


def test_a_strangers_layer_is_made_of_parameters_where_it_was_asked_for() -> None:
    variant = attnkit.get_variant("multi_head")
    config = attnkit.LayerConfig(embed_dim=4)
    layer = MeanLayer(config, variant=variant, device="meta", dtype=torch.float64)
    assert (layer.config, layer.variant) == (config, variant)
    shapes = {name: tuple(each.shape) for name, each in layer.named_parameters()}
    assert shapes == {"gain": (4,), "drawn": (4, 3), "out_proj.weight": (4, 4)}
    assert {(each.device.type, each.dtype) for each in layer.parameters()} == {
        ("meta", torch.float64)
    }
    assert MeanLayer(config, variant=variant).gain.tolist() == [2.0] * 4


def test_it_agrees_with_torch_multihead_attention() -> None:
    ours = layer(projection_bias=True)
    theirs = nn.MultiheadAttention(32, 4, batch_first=True).eval()
    with torch.no_grad():
        projections = (ours.q_proj, ours.k_proj, ours.v_proj)
        theirs.in_proj_weight.copy_(torch.cat([each.weight for each in projections]))
        theirs.in_proj_bias.copy_(torch.cat([each.bias for each in projections]))
        theirs.out_proj.load_state_dict(ours.out_proj.state_dict())
    x = tokens()
    lengths = torch.tensor([4, 9])
    hidden = torch.arange(9) >= lengths[:, None]
    expected, _ = theirs(x, x, x, key_padding_mask=hidden, need_weights=False)
    found = ours(x, mask=attnkit.padding(lengths))
    real = ~hidden
    torch.testing.assert_close(found[real], expected[real], **CLOSE)


def test_rotary_positions_agree_with_llama() -> None:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    from attnkit.layers.rotary import rotate

    x = torch.randn(1, 2, 7, 16)
    angles = torch.arange(3, 10)[:, None] * 10000.0 ** (-torch.arange(0, 16, 2) / 16)
    angles = torch.cat((angles, angles), -1)[None]
    expected, _ = apply_rotary_pos_emb(x, x, angles.cos(), angles.sin())
    torch.testing.assert_close(rotate(x, first=3, base=10000.0), expected, **CLOSE)


def test_rotary_attention_depends_on_distances_alone() -> None:
    from attnkit.layers.rotary import rotate

    query, key = torch.randn(2, 1, 1, 8, 16, dtype=torch.float64)

    def logits(first: int) -> torch.Tensor:
        return rotate(query, first=first, base=1e4) @ rotate(key, first=first, base=1e4).mT

    # angles of 2 ** 17 radians carry 2 ** 17 units of float64
    torch.testing.assert_close(logits(2**17), logits(0), rtol=0, atol=16 * 2.0 ** (17 - 52))


SHAPES = [
    dict(),
    dict(num_kv_heads=2),
    dict(num_kv_heads=1, value_head_dim=6),
    dict(rotary_base=1e4, sinks=True, softcap=10.0),
    dict(window_size=3, rotary_base=1e4),
    dict(window_size=1),
]


@pytest.mark.parametrize("options", SHAPES, ids=str)
@pytest.mark.parametrize("cuts", [(1, 1, 1, 1, 1, 1, 1, 1, 1), (4, 5), (1, 7, 1), (0, 9)], ids=str)
def test_chunks_and_steps_equal_the_whole(options: dict[str, Any], cuts: tuple[int, ...]) -> None:
    built, x = layer(is_causal=True, **options), tokens()
    state, outs = built.init_state(2), []
    for chunk in x.split(cuts, 1):
        y, state = built(chunk, state=state)
        outs.append(y)
    torch.testing.assert_close(torch.cat(outs, 1), built(x), **CLOSE)
    assert state.tokens == 9


@pytest.mark.parametrize("window_size", [None, 4])
@pytest.mark.parametrize("mask", ["left_padding", "documents"])
def test_chunks_equal_the_whole_under_a_mask(window_size: int | None, mask: str) -> None:
    built, x = layer(is_causal=True, window_size=window_size, rotary_base=1e4), tokens()
    ids = torch.tensor([[0] * 4 + [1] * 5, [2] * 9])

    def masked(stop: int) -> attnkit.Mask:
        return (
            attnkit.left_padding([3, 0])
            if mask == "left_padding"
            else attnkit.documents(ids[:, :stop])
        )

    state, outs = built.init_state(2), []
    for start, stop in ((0, 5), (5, 6), (6, 9)):
        y, state = built(x[:, start:stop], mask=masked(stop), state=state)
        outs.append(y)
    torch.testing.assert_close(torch.cat(outs, 1), built(x, mask=masked(9)), **CLOSE)


def test_a_window_refuses_masks_it_cannot_shift() -> None:
    built, x = layer(is_causal=True, window_size=2), tokens()
    _, state = built(x[:, :5], state=built.init_state(2))
    with pytest.raises(UnsupportedError, match="the first 4 keys are no longer held"):
        built(x[:, 5:6], mask=attnkit.prefix_lm([2, 2]), state=state)


def test_nan_in_padded_tokens_reaches_no_real_output_and_no_gradient() -> None:
    built, x = layer(), tokens()
    x[0, 4:] = float("nan")
    y = built(x, mask=attnkit.padding([4, 9]))
    assert y.isfinite().all()
    y.sum().backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in built.parameters())


def test_an_encoder_decoder_pair_attends_to_its_context() -> None:
    cross = layer(context_dim=24)
    x, context = tokens(), tokens(length=5, width=24)
    whole = cross(x, context=context, mask=attnkit.padding([3, 5]))
    state, outs = cross.init_state(2), []
    for chunk in x.split(4, 1):
        y, state = cross(chunk, context=context, mask=attnkit.padding([3, 5]), state=state)
        outs.append(y)
    torch.testing.assert_close(torch.cat(outs, 1), whole, **CLOSE)
    changed = context.clone()
    changed[0, 3:] += 1.0
    assert torch.equal(cross(x, context=changed, mask=attnkit.padding([3, 5])), whole)


def test_dropout_acts_in_training_alone() -> None:
    built, x = layer(dropout_p=0.5), tokens()
    assert torch.equal(built(x), built(x))
    built.train()
    assert not torch.equal(built(x), built(x))


def test_a_layer_goes_through_state_dict_and_autocast() -> None:
    built, x = layer(sinks=True, is_causal=True), tokens()
    other = attnkit.create("multi_head", embed_dim=32, num_heads=4, sinks=True, is_causal=True)
    other.load_state_dict(built.state_dict())
    assert torch.equal(built(x), other.eval()(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = built(x, state=built.init_state(2))
    assert y.dtype == torch.bfloat16


def test_a_layer_compiles_without_a_graph_break() -> None:
    built, x = layer(is_causal=True, num_kv_heads=2, rotary_base=1e4), tokens()
    compiled = torch.compile(built, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), built(x), **CLOSE)


def test_a_layer_is_refused_wrong_inputs_by_name() -> None:
    built, x = layer(is_causal=True), tokens()
    with pytest.raises(ShapeError, match=r"x must be \(B, L, D\) with D = 32, got \(2, 9, 16\)"):
        built(x[..., :16])
    with pytest.raises(DtypeError, match="float32, got float64"):
        built(x.double())
    with pytest.raises(ArgumentError, match=r"got a context, but the layer was made with no"):
        built(x, context=x)
    with pytest.raises(StateError, match="holds 3 samples, the call has 2"):
        built(x, state=built.init_state(3))
    with pytest.raises(StateError, match="must be a KVCache, got WindowCache"):
        built(x, state=layer(is_causal=True, window_size=3).init_state(2))
    with pytest.raises(UnsupportedError, match="set is_causal=True"):
        layer().init_state(2)


BAD_CONFIGURATIONS = [
    (dict(), "option 'embed_dim' is missing .*'num_heads' is missing"),
    (dict(embed_dim=32, num_heads=4, num_head=2), "no option 'num_head'; did you mean 'num_heads'"),
    (dict(embed_dim=32, num_heads=0), "num_heads: input should be greater than 0, got 0"),
    (dict(embed_dim=32, num_heads=6, num_kv_heads=4, head_dim=8), "multiple .*got 6 and 4"),
    (dict(embed_dim=32, num_heads=5), "embed_dim must be a multiple of num_heads .*32 and 5"),
    (dict(embed_dim=32, num_heads=4, head_dim=7, rotary_base=1e4), "even head_dim, got 7"),
    (dict(embed_dim=32, num_heads=4, context_dim=8, is_causal=True), "excludes is_causal"),
    (dict(embed_dim=32, num_heads=4, dropout_p=1.0), "dropout_p: .*got 1.0"),
    (dict(embed_dim=32, num_heads=4, implementation="quick"), "one of auto, reference, eager"),
]


@pytest.mark.parametrize(("options", "message"), BAD_CONFIGURATIONS, ids=str)
def test_a_wrong_option_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        attnkit.create("multi_head", **options)


def test_create_wants_the_name_of_one_variant() -> None:
    with pytest.raises(ArgumentError, match="got 'auto'"):
        attnkit.create("auto", embed_dim=8)
    with pytest.raises(UnknownVariantError, match="Did you mean 'multi_head'"):
        attnkit.create("multihead", embed_dim=8)


@pytest.mark.parametrize("name", [row.name for row in attnkit.list_variants()])
def test_every_error_of_create_is_one_of_ours(name: str) -> None:
    with pytest.raises(AttnkitError, match="no option 'colour'"):
        attnkit.create(name, colour="red")
