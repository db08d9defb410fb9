"""What torch's layers are refused, and that a swap of them comes out as it went in.

Where a test compares numbers itself, all is in float64, as in `test_swap_torch.py`.
"""

from __future__ import annotations

import copy
import io
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tiny_models import CLOSE, furthest
from torch import nn
from torch_layers import DOUBLE, attention, encoder, later, normal, padding

import attnkit
from attnkit.errors import ArgumentError, MaskError, ShapeError, SwapError, UnsupportedError
from attnkit_plugins.hosts.torch import HOST

if TYPE_CHECKING:
    from collections.abc import Callable

# torch's own encoder makes nested tensors, and torch warns of it once per process
pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")


@pytest.mark.parametrize(
    ("option", "told"),
    [("add_bias_kv", "add_bias_kv=True"), ("add_zero_attn", "add_zero_attn=True")],
)
def test_keys_that_a_layer_appends_are_refused_by_name(option: str, told: str) -> None:
    layer = attention(**{option: True})
    assert told in str(attnkit.survey(layer))
    with pytest.raises(UnsupportedError, match=told):
        attnkit.swap(layer, "multi_head")


def test_class_with_another_forward_is_refused_by_name() -> None:
    class Mine(nn.MultiheadAttention):
        def forward(self, *_: Any, **__: Any) -> Any:
            return None

    with pytest.raises(UnsupportedError, match="Mine has a forward of its own"):
        attnkit.swap(Mine(32, 4), "multi_head")


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"is_causal": True}, ArgumentError, "is_causal is a hint about attn_mask"),
        ({"attn_mask": later(8)}, ShapeError, r"\(L, S\) = \(9, 9\) .* got \(8, 8\)"),
        ({"key_padding_mask": padding(8)}, ShapeError, r"\(B, S\) = \(2, 9\), got \(2, 8\)"),
        ({"attn_mask": later().int()}, MaskError, "attn_mask must be a bool or a floating"),
    ],
)
def test_wrong_arguments_are_refused_by_name(
    options: dict[str, Any], error: type[Exception], told: str
) -> None:
    layer, x = attention(batch_first=True), normal(2, 9, 32)
    with attnkit.swap(layer, "multi_head"), pytest.raises(error, match=told):
        layer(x, x, x, need_weights=False, **options)


def test_weights_after_dropout_are_refused_by_name() -> None:
    layer, x = attention(batch_first=True, dropout=0.25), normal(2, 9, 32)
    with attnkit.swap(layer, "multi_head"):
        layer.train()
        with pytest.raises(UnsupportedError, match="need_weights: a variant drops"):
            layer(x, x, x)


def test_model_around_torchs_layers_needs_a_sample() -> None:
    model = nn.Sequential(nn.Linear(7, 32, dtype=DOUBLE), encoder())
    with pytest.raises(SwapError, match="cannot make inputs for Sequential"):
        attnkit.swap(model, "multi_head")
    receipt = attnkit.swap(model, "multi_head", sample={"input": normal(2, 9, 7)}).receipt
    assert [site.path for site in receipt.sites] == ["1.layers.0.self_attn", "1.layers.1.self_attn"]


def test_feedforward_part_is_surveyed_and_refused() -> None:
    sites = [site for site in attnkit.survey(encoder()) if site.kind == "feedforward"]
    assert [(s.path, s.needs.embed_dim, s.needs.hidden_dim) for s in sites] == [
        ("layers.0.linear1", 32, 48),
        ("layers.1.linear1", 32, 48),
    ]
    assert all("there is no module to replace" in (site.obstacle or "") for site in sites)


def test_survey_tells_what_a_layer_needs() -> None:
    model = nn.TransformerDecoderLayer(32, 4, 48, dropout=0.25)
    told = {site.path: str(site.needs) for site in attnkit.survey(model)}
    assert told["self_attn"] == "4 heads, head_dim 8, dropout 0.25"
    assert told["multihead_attn"] == "cross, 4 heads, head_dim 8, dropout 0.25"


def test_version_that_was_not_tested_is_told_by_survey_and_explain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = "torch 2.13.0: attnkit's adapter was tested with 1.13"
    version = torch.__version__.partition("+")[0]
    monkeypatch.setattr(HOST, "tested", ("1.13",))
    told = told.replace("2.13.0", version)
    assert str(attnkit.survey(encoder())).count(told) == 1
    assert str(attnkit.explain(encoder(), "flash")).count(told) == 1


def test_version_that_was_tested_needs_no_remark() -> None:
    assert "tested" not in str(attnkit.survey(encoder()))


# the transaction


def state(model: nn.Module) -> list[object]:
    """Return what must be the same objects after an undo."""
    told: list[object] = []
    for path, module in model.named_modules():
        members = {name: id(value) for name, value in module.__dict__.items()}
        told += [path, type(module), members]
    return told


def test_restore_puts_back_the_same_objects_and_the_same_bits() -> None:
    model, x = encoder(), normal(2, 9, 32)
    with torch.no_grad():
        before, out = state(model), model(x)
        swapped = attnkit.swap(model, "multi_head")
        assert state(model) != before
        swapped.restore()
        assert state(model) == before
        assert torch.equal(model(x), out)


def test_class_of_a_swapped_layer_finds_all_that_it_reads() -> None:
    layer, x = attention(batch_first=True), normal(2, 9, 32)
    with torch.no_grad():
        expected, _ = layer(x, x, x)
        swapped = attnkit.swap(layer, "multi_head")
        for _ in ("swapped", "restored"):
            assert layer._qkv_same_embed_dim
            out, _ = nn.MultiheadAttention.forward(layer, x, x, x)
            assert furthest(out, expected) < CLOSE
            swapped.restore()
        attnkit.swap(layer, "multi_head")
        layer._reset_parameters()


def test_output_projection_of_a_swapped_layer_is_called() -> None:
    class Adapted(nn.Module):
        def __init__(self, base: nn.Module) -> None:
            super().__init__()
            self.base, self.more = base, nn.Linear(32, 32, dtype=DOUBLE)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.base(x) + self.more(x)
            return out

    layer, x, seen = attention(batch_first=True), normal(2, 9, 32), []
    attnkit.swap(layer, "multi_head")
    before, _ = layer(x, x, x)
    layer.out_proj.register_forward_hook(lambda *_: seen.append("hook"))
    layer.out_proj = adapted = Adapted(layer.out_proj)
    after, _ = layer(x, x, x)
    assert seen == ["hook"]
    after.sum().backward()
    assert furthest(before.detach(), after.detach()) > 1e-2
    assert adapted.more.weight.grad is not None


def test_nested_swaps_unwind_in_order() -> None:
    model = encoder()
    before = state(model)
    first = attnkit.swap(model, "multi_head")
    between = state(model)
    second = attnkit.swap(model, {"layers.1": "flash"})
    told = r"layers\.1\.self_attn: 'flash' was swapped in after 'multi_head'"
    with pytest.raises(SwapError, match=told):
        first.restore()
    second.restore()
    assert state(model) == between
    first.restore()
    assert state(model) == before


def test_forward_that_was_replaced_after_the_swap_blocks_the_restore() -> None:
    layer = attention()
    swapped = attnkit.swap(layer, "multi_head")
    layer.forward = None
    with pytest.raises(SwapError, match="forward was replaced by other means"):
        swapped.restore()


def copied(model: Any) -> Any:
    return copy.deepcopy(model)


def pickled(model: Any) -> Any:
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


@pytest.mark.parametrize("make", [copied, pickled])
def test_copies_of_a_swapped_model_are_swapped_and_stand_alone(
    make: Callable[[Any], Any], spy: Any
) -> None:
    model, x = encoder(), normal(2, 9, 32)
    with torch.no_grad(), attnkit.swap(model, "spy"):
        other = make(model)
        nn.init.zeros_(model.layers[0].self_attn.in_proj_weight)
        spy.calls.clear()
        out = other(x)
    assert len(spy.calls) == 2
    with torch.no_grad():
        assert furthest(out, encoder()(x)) < CLOSE


def test_parameters_keep_their_names() -> None:
    model = encoder()
    names = list(model.state_dict())
    with attnkit.swap(model, "multi_head"):
        assert list(model.state_dict()) == names
        model.load_state_dict(encoder().state_dict())


def test_swapped_encoder_compiles_into_one_graph() -> None:
    model, x = encoder(), normal(2, 9, 32)
    with torch.no_grad(), attnkit.swap(model, "multi_head"):
        expected = model(x, mask=later())
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        assert furthest(compiled(x, mask=later()), expected) < CLOSE


def test_autocast_rounds_as_it_does_without_the_swap() -> None:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(32, 4, batch_first=True).eval()
    x = normal(2, 9, 32).float()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        before, _ = layer(x, x, x, need_weights=False)
        with attnkit.swap(layer, "multi_head"):
            after, _ = layer(x, x, x, need_weights=False)
    assert after.dtype == before.dtype
    # a handful of bfloat16 roundings of values of this size
    assert furthest(before, after) < 8 * 2.0**-8 * float(before.abs().max())
