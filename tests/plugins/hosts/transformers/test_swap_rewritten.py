"""Variants in transformers models that do not call its attention interface, by rewritten layers.

Models are in float32, as some of them round to it anyway. A swap verifies itself, in units of
rounding; where a test compares numbers itself, rounding is about 1e-6 of the largest, and 1e-4 of
it lies far below what a lost mask, a lost bias or a lost token does (1e-2 and more).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from small_llama import INPUTS, REAL
from tiny_models import COPIES, SMALL, copied, lively
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import attnkit
from attnkit.errors import SwapError, UnsupportedError, VerificationError
from attnkit_plugins.hosts.transformers.rewriter import _REWRITTEN
from attnkit_plugins.hosts.transformers.rewrites import bloom

if TYPE_CHECKING:
    from collections.abc import Callable

    from tiny_models import Exact

ENDS: Any = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "vocab_size": 97}
GPT: Any = {"n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8}


def bloom_lm() -> Any:
    config = transformers.BloomConfig(hidden_size=64, n_layer=2, n_head=4, **ENDS)
    return transformers.BloomForCausalLM(config)


def mpt() -> Any:
    sizes: Any = {"d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}
    config = transformers.MptConfig(**sizes, expansion_ratio=2, use_cache=True, **ENDS)
    return transformers.MptForCausalLM(config)


def mpt_clipped() -> Any:
    sizes: Any = {"d_model": 64, "n_layers": 2, "n_heads": 3, "max_seq_len": 64}
    sizes["attn_config"] = {"clip_qkv": 0.5, "softmax_scale": 0.3}
    config = transformers.MptConfig(**{**sizes, "d_model": 48}, expansion_ratio=2, **ENDS)
    return transformers.MptForCausalLM(config)


def gptj() -> Any:
    return transformers.GPTJForCausalLM(transformers.GPTJConfig(**GPT, **ENDS))


def codegen() -> Any:
    return transformers.CodeGenForCausalLM(transformers.CodeGenConfig(**GPT, **ENDS))


def gpt_neo() -> Any:
    sizes: Any = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "intermediate_size": 96}
    window: Any = {"window_size": 6, "attention_types": [[["global", "local"], 1]]}
    config = transformers.GPTNeoConfig(**sizes, **window, max_position_embeddings=64, **ENDS)
    return transformers.GPTNeoForCausalLM(config)


def mpnet() -> Any:
    return transformers.MPNetModel(transformers.MPNetConfig(**SMALL))


def deberta(**options: Any) -> Any:
    relative: Any = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
    config = transformers.DebertaV2Config(**SMALL, **{**relative, **options})
    return transformers.DebertaV2Model(config)


DECODERS: dict[str, Callable[[], Any]] = {
    "bloom": bloom_lm,
    "mpt": mpt,
    "gptj": gptj,
    "codegen": codegen,
    "gpt_neo": gpt_neo,
}
MODELS: dict[str, Callable[[], Any]] = {
    **DECODERS,
    "mpt, clipped": mpt_clipped,
    "mpnet": mpnet,
    "deberta_v2": deberta,
    "deberta_v2, shared keys": lambda: deberta(share_att_key=True, position_buckets=8),
    "deberta_v2, contents alone": lambda: deberta(relative_attention=False, pos_att_type=None),
}


CLOSE = 1e-4
WINDOW: Any = {"variant": "sliding_window", "window_size": 4}


def make(name: str, dtype: torch.dtype = torch.float32) -> Any:
    return lively(MODELS[name], dtype)


def furthest(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest difference, relative to the largest number."""
    return float((one - other).abs().max() / one.abs().max())


def attentions(model: Any) -> list[Any]:
    sites = [site for site in attnkit.survey(model) if site.kind == "attention"]
    return [model.get_submodule(site.path) for site in sites]


def test_every_rewritten_class_has_a_model_here() -> None:
    models = {name.partition(".")[0] for name in _REWRITTEN}
    assert models == {name.partition(",")[0] for name in MODELS}


@pytest.mark.parametrize("name", MODELS)
def test_exact_variant_passes_verification_in_every_layer(name: str, exact: Exact) -> None:
    receipt = attnkit.swap(make(name, exact.dtype), exact.variant).receipt
    steps = 2 if name in DECODERS else 1
    assert [site.calls for site in receipt.sites] == [steps, steps]
    assert {leak.outcome for leak in receipt.leaks} == {"equal"}
    asked = {"batch", "padding"} | ({"causality"} if "mpt, clipped" in name else set())
    assert asked <= {leak.name for leak in receipt.leaks}


@pytest.mark.parametrize("name", MODELS)
def test_layer_stays_the_object_that_it_was_and_gets_its_class_back(name: str) -> None:
    model = make(name)
    layers = attentions(model)
    before = [(type(each), dict(vars(each))) for each in layers]
    swapped = attnkit.swap(model, "flash")
    assert all(one is other for one, other in zip(attentions(model), layers, strict=True))
    assert all(type(each) is not kind for each, (kind, _) in zip(layers, before, strict=True))
    assert all(isinstance(each, kind) for each, (kind, _) in zip(layers, before, strict=True))
    swapped.restore()
    assert [(type(each), dict(vars(each))) for each in layers] == before


def test_name_of_a_layer_is_the_same_while_it_is_swapped() -> None:
    model = make("bloom")
    before = attnkit.survey(model)
    assert "BloomAttention" in str(before)
    with attnkit.swap(model, {"type:BloomAttention": "flash"}):
        assert attnkit.survey(model) == before


def test_swaps_stack_and_come_out_in_reverse_order() -> None:
    model = make("bloom")
    with torch.no_grad():
        before = model(**INPUTS).logits
        first = attnkit.swap(model, "flash")
        second = attnkit.swap(model, WINDOW, accept="different")
        with pytest.raises(SwapError, match=r"'sliding_window' was swapped in after 'flash'"):
            first.restore()
        assert not torch.allclose(model(**INPUTS).logits[REAL], before[REAL], atol=1e-2)
        second.restore()
        first.restore()
        assert torch.equal(model(**INPUTS).logits, before)


def test_failure_leaves_the_class_of_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_residual(self: Any, x: Any, residual: Any, **rest: Any) -> Any:
        out, weights = forward(self, x, residual, **rest)
        return out - residual, weights

    model = make("bloom")
    before = [(type(each), dict(vars(each))) for each in attentions(model)]
    forward = bloom.BloomAttention.forward
    # what is rewritten is not believed either
    monkeypatch.setattr(bloom.BloomAttention, "forward", without_residual)
    with pytest.raises(VerificationError, match=r"undone: output 'logits' .* moved by"):
        attnkit.swap(model, "flash")
    assert [(type(each), dict(vars(each))) for each in attentions(model)] == before


@pytest.mark.parametrize("beams", [1, 3], ids=["greedy", "beams"])
@pytest.mark.parametrize("name", DECODERS)
def test_generated_tokens_of_a_padded_batch_are_equal(name: str, beams: int) -> None:
    model = make(name)
    rules: Any = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None}
    before = model.generate(**INPUTS, **rules, num_beams=beams)
    with attnkit.swap(model, "flash"):
        after = model.generate(**INPUTS, **rules, num_beams=beams)
    assert torch.equal(before, after)


CUTS = [slice(0, 7), slice(7, 8), slice(8, 15), slice(15, 16), slice(16, 17)]


# the layers of the other two know no static cache: their windows and biases count from its end
STATIC = ("bloom", "gptj", "codegen")


@pytest.mark.parametrize(
    ("name", "static"), [*((name, False) for name in DECODERS), *((name, True) for name in STATIC)]
)
def test_chunks_and_steps_with_a_cache_equal_one_call(name: str, *, static: bool) -> None:
    model, ids = make(name), INPUTS["input_ids"][1:]
    cache: Any = transformers.DynamicCache(config=model.config)
    if static:
        cache = transformers.StaticCache(config=model.config, max_cache_len=32)
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        with attnkit.swap(model, "multi_head"):
            given = {"past_key_values": cache, "use_cache": True}
            parts = torch.cat([model(ids[:, cut], **given).logits for cut in CUTS], dim=1)
    assert furthest(whole, parts) < CLOSE


def test_window_on_a_static_cache_is_that_of_the_written_places() -> None:
    model, ids = make("bloom"), INPUTS["input_ids"][1:]
    cache = transformers.StaticCache(config=model.config, max_cache_len=32)
    with torch.no_grad(), attnkit.swap(model, WINDOW, accept="different"):
        whole = model(ids, use_cache=False).logits
        parts = [model(ids[:, cut], past_key_values=cache).logits for cut in CUTS]
    assert furthest(whole, torch.cat(parts, dim=1)) < CLOSE


def gradients(model: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**INPUTS, use_cache=False).logits[REAL].square().mean().backward()
    whole = {name: p.grad for name, p in model.named_parameters()}
    return {n: g.full_tensor() if isinstance(g, DTensor) else g for n, g in whole.items()}


def furthest_of(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    largest = max(float(each.abs().max()) for each in one.values())
    return max(float((one[name] - other[name]).abs().max()) for name in one) / largest


@pytest.mark.parametrize("name", DECODERS)
def test_gradients_are_those_of_the_model(name: str) -> None:
    model = make(name)
    wanted = gradients(model)
    with attnkit.swap(model, "multi_head"):
        assert furthest_of(wanted, gradients(model)) < CLOSE


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers_give_the_same_gradients(*, reentrant: bool) -> None:
    model = make("gptj")
    wanted = gradients(model)
    attnkit.swap(model, "multi_head")
    model.train()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    assert furthest_of(wanted, gradients(model)) < CLOSE


@pytest.mark.parametrize("name", DECODERS)
def test_autocast_stays_as_close_to_the_model_as_its_rounding(name: str) -> None:
    model = make(name)
    with torch.no_grad():
        exact = model(**INPUTS).logits[REAL]

        def error() -> float:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return furthest(exact, model(**INPUTS).logits[REAL].float())

        before = error()
        with attnkit.swap(model, "multi_head"):
            # both round to bfloat16 in the same places but within attention
            assert error() < 2 * before


# torch's own warning, when it traces an autograd.Function
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("name", ["bloom", "gptj", "codegen", "mpnet"])
def test_swapped_model_compiles_into_one_graph(name: str) -> None:
    model = make(name)
    compiled = torch.compile(model, backend="eager", fullgraph=True)

    def outputs(one: Any) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = one(**INPUTS)[0][REAL]
        return found

    before = outputs(compiled)
    with attnkit.swap(model, WINDOW, accept="different"):
        between = outputs(compiled)
        assert furthest(between, outputs(model)) < CLOSE
        assert furthest(between, before) > 1e-2
    assert torch.equal(outputs(compiled), before)
    torch.compiler.reset()


@pytest.mark.parametrize("how", COPIES)
def test_copy_of_a_swapped_model_stays_swapped(how: str) -> None:
    model = make("bloom")
    with torch.no_grad():
        before = model(**INPUTS).logits
        with attnkit.swap(model, WINDOW, accept="different"):
            swapped = model(**INPUTS).logits
            other = copied(model, how)
        assert torch.equal(other(**INPUTS).logits, swapped)
        assert torch.equal(model(**INPUTS).logits, before)


def test_state_dict_has_the_names_and_tensors_of_the_model() -> None:
    model = make("bloom")
    before = model.state_dict(keep_vars=True)
    attnkit.swap(model, "flash")
    after = model.state_dict(keep_vars=True)
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)


# GPT-J returns a view, and nobody writes to it
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module:UserWarning")
@pytest.mark.parametrize("first", ["swap", "shard"])
def test_swapped_model_can_be_sharded_and_a_sharded_one_swapped(first: str, mesh: Any) -> None:
    model = make("gptj")
    wanted = gradients(model)
    if first == "swap":
        attnkit.swap(model, "multi_head")
    for layer in model.transformer.h:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if first == "shard":
        attnkit.swap(model, "multi_head")
    assert furthest_of(wanted, gradients(model)) < CLOSE


@pytest.mark.parametrize(
    "name", ["bloom", "gptj", "codegen", "gpt_neo", "mpnet", "mpt", "deberta_v2"]
)
def test_attention_weights_are_refused_by_name(name: str) -> None:
    model = make(name)
    with (
        attnkit.swap(model, "multi_head"),
        pytest.raises(UnsupportedError, match="output_attentions: needs attention weights"),
    ):
        model(**INPUTS, output_attentions=True)


@pytest.mark.parametrize("name", ["gptj", "codegen", "gpt_neo", "mpnet"])
def test_bool_mask_that_the_model_would_add_to_its_logits_is_refused_by_name(name: str) -> None:
    model, ids = make(name), INPUTS["input_ids"]
    length = ids.shape[1]
    mask = torch.ones(len(ids), 1, length, length, dtype=torch.bool).tril()
    with (
        attnkit.swap(model, "multi_head"),
        pytest.raises(UnsupportedError, match="attention_mask: bool, which the model adds"),
    ):
        model(ids, attention_mask=mask)


@pytest.mark.parametrize("variant", ["linear", "gated_linear"])
def test_recurrence_takes_the_place_of_attention_and_keeps_its_state(variant: str) -> None:
    model, ids = make("gptj"), INPUTS["input_ids"][1:]
    with torch.no_grad(), attnkit.swap(model, variant, accept="different"):
        whole = model(ids, use_cache=False).logits
        cache = transformers.DynamicCache(config=model.config)
        parts = [model(ids[:, cut], past_key_values=cache).logits for cut in CUTS]
        assert cache.layers[0].keys is None
    assert furthest(whole, torch.cat(parts, dim=1)) < CLOSE
