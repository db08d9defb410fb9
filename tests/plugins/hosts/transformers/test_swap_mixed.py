"""Models in which hosts meet: transformers layers that call torch's function, or hold torch's own.

Where a test compares numbers itself, all is in float64, as in `test_swap_torch.py`.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from tiny_models import CLOSE, furthest
from torch import nn

import attnkit
from attnkit.errors import UnsupportedError
from attnkit.hosts.own_modules import MEMBER
from attnkit_plugins.hosts import own as own_host
from attnkit_plugins.hosts import transformers as transformers_host

if TYPE_CHECKING:
    from collections.abc import Iterator


def falcon(*, alibi: bool = True) -> Any:
    sizes: Any = {"vocab_size": 97, "hidden_size": 64, "num_hidden_layers": 2}
    config = transformers.FalconConfig(**sizes, num_attention_heads=4, alibi=alibi, pad_token_id=0)
    return large(transformers.FalconForCausalLM(config))


def siglip() -> Any:
    """Return a model of transformers whose last layer is torch's attention."""
    sizes: Any = {"hidden_size": 64, "intermediate_size": 96, "image_size": 32, "patch_size": 8}
    layers: Any = {"num_hidden_layers": 1, "num_attention_heads": 4}
    return large(transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**sizes, **layers)))


def large(model: Any) -> Any:
    # larger than transformers initialises: attention must prefer some keys to others
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.25, generator=generator)
    return model.eval().double()


def prompt() -> dict[str, torch.Tensor]:
    """Return two prompts of 17 tokens, the first with 4 of them padding on the left."""
    ids = torch.randint(3, 97, (2, 17), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    ids[0, :4], mask[0, :4] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("alibi", [True, False])
def test_layer_that_calls_torchs_function_keeps_its_logits(alibi: bool) -> None:
    model, inputs = falcon(alibi=alibi), prompt()
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        before = model(**inputs).logits[real]
        swapped = attnkit.swap(model, "multi_head")
        after = model(**inputs).logits[real]
    assert [site.calls for site in swapped.receipt.sites] == [2, 2]
    assert furthest(before, after) < CLOSE * float(before.abs().max())


def test_greedy_generation_with_alibi_is_equal_token_for_token() -> None:
    model, inputs = falcon(), prompt()
    rules = {"do_sample": False, "max_new_tokens": 12, "pad_token_id": 0, "eos_token_id": None}
    before = model.generate(**inputs, **rules)
    with attnkit.swap(model, "flash"):
        assert torch.equal(model.generate(**inputs, **rules), before)


def test_window_of_a_plan_reaches_cached_steps() -> None:
    model, ids = falcon(alibi=False), prompt()["input_ids"][1:]
    plan = {"variant": "sliding_window", "window_size": 5}
    with torch.no_grad(), attnkit.swap(model, plan, accept="different"):
        whole = model(ids).logits
        first = model(ids[:, :16], use_cache=True)
        step = model(ids[:, 16:], past_key_values=first.past_key_values).logits
    assert furthest(whole[:, 16:], step) < CLOSE * float(whole.abs().max())


def test_layer_whose_model_spells_its_attention_out_is_refused_by_name() -> None:
    model = falcon()
    # the model is told at load time; to change its mind later is for those that use the interface
    model.config._attn_implementation = "eager"
    with pytest.raises(UnsupportedError, match=r"under attn_implementation='sdpa' only, .*'eager'"):
        attnkit.swap(model, "flash")


def test_restore_puts_back_the_same_objects() -> None:
    model = falcon()
    layer = model.transformer.h[0].self_attention
    before = {name: id(value) for name, value in vars(layer).items()}
    attnkit.swap(model, "flash").restore()
    assert {name: id(value) for name, value in vars(layer).items()} == before


def test_layers_of_two_hosts_are_swapped_at_once() -> None:
    model = siglip()
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        before = model(pixels).pooler_output
        swapped = attnkit.swap(model, "multi_head")
        after = model(pixels).pooler_output
    assert [site.layer for site in swapped.receipt.sites] == [
        "SiglipAttention",
        "MultiheadAttention",
    ]
    assert set(swapped.receipt.versions) == {"python", "attnkit", "torch", "transformers"}
    assert furthest(before, after) < CLOSE * float(before.abs().max())


def test_layer_of_torch_alone_is_verified_on_the_inputs_of_the_model_around_it() -> None:
    model = siglip()
    (path,) = (site.path for site in attnkit.survey(model) if site.host == "torch")
    receipt = attnkit.swap(model, {path: "flash"}).receipt
    assert [(site.path, site.calls) for site in receipt.sites] == [(path, 2)]
    assert list(receipt.sample) == ["pixel_values"]


@pytest.fixture
def declared() -> Iterator[None]:
    """Declare a class of transformers, for as long as a test runs."""
    layer = transformers.models.falcon.modeling_falcon.FalconAttention
    attnkit.declare(layer)
    yield
    delattr(layer, MEMBER)


@pytest.mark.usefixtures("declared")
def test_declared_layer_of_a_library_runs_on_the_inputs_of_the_library() -> None:
    model = falcon()
    assert {s.host for s in attnkit.survey(model) if s.kind == "attention"} == {"own"}
    receipt = attnkit.swap(model, "multi_head").receipt
    assert [out.name for out in receipt.outputs] == ["logits", "next step logits"]


@pytest.mark.usefixtures("declared")
def test_host_that_can_goes_before_one_that_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    model = falcon()
    model.config._attn_implementation = "eager"
    hosts = (transformers_host.HOST, own_host.HOST)
    monkeypatch.setattr("attnkit.swaps.api.default", lambda: SimpleNamespace(hosts=lambda: hosts))
    sites = [site for site in attnkit.survey(model) if site.kind == "attention"]
    assert [(site.host, site.obstacle) for site in sites] == [("own", None)] * 2


def test_survey_is_in_the_order_of_the_modules() -> None:
    model = siglip()
    order = [name for name, _ in model.named_modules()]
    places = [order.index(site.path) for site in attnkit.survey(model)]
    assert places == sorted(places)
    assert {site.host for site in attnkit.survey(model)} == {"transformers", "torch"}
