"""Receipts beside checkpoints: saved, re-applied on load, changes reported, misfits refused."""

from __future__ import annotations

import copy
import dataclasses
import io
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from tiny_models import GQA

import attnkit
from attnkit.errors import ConfigError, SwapError, UnknownVariantError

if TYPE_CHECKING:
    from pathlib import Path

IDS = torch.randint(3, 97, (2, 11), generator=torch.Generator().manual_seed(0))
PLAN: Any = {
    "layers.1": {"variant": "sliding_window", "window_size": 4},
    "layers.*": {"variant": "flash", "implementation": "tiled", "fallback": ["reference"]},
}
LAYERS = tuple(f"model.layers.{number}.self_attn" for number in range(2))


def build(**changed: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{**GQA, **changed})
    return transformers.LlamaForCausalLM(config).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(IDS).logits
    return out


@pytest.fixture
def model() -> Any:
    return build()


@pytest.fixture
def swapped(model: Any) -> Any:
    return attnkit.swap(model, PLAN, accept="different")


def test_saved_folder_loads_as_the_model_without_the_swap(
    model: Any, swapped: Any, tmp_path: Path
) -> None:
    swapped.restore()
    before = logits(model)
    attnkit.swap(model, PLAN, accept="different")
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(loaded), before)


def test_save_pretrained_flow_makes_the_same_swap_again(
    model: Any, swapped: Any, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    assert swapped.save(tmp_path) == tmp_path / "attnkit.json"
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    again = attnkit.reapply(loaded, tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert again.receipt == swapped.receipt


def test_torch_save_flow_makes_the_same_swap_again(
    model: Any, swapped: Any, tmp_path: Path
) -> None:
    torch.save(model.state_dict(), tmp_path / "model.pt")
    assert swapped.save(tmp_path / "model.pt").name == "model.pt.attnkit.json"
    loaded = transformers.LlamaForCausalLM(transformers.LlamaConfig(**GQA)).eval()
    loaded.load_state_dict(torch.load(tmp_path / "model.pt"))
    attnkit.reapply(loaded, str(tmp_path / "model.pt"))
    assert torch.equal(logits(loaded), logits(model))


def test_reapplied_swap_can_be_restored(model: Any, swapped: Any) -> None:
    other = build()
    before = logits(other)
    attnkit.reapply(other, swapped.receipt).restore()
    assert torch.equal(logits(other), before)


def test_plan_of_a_function_is_re_applied_site_by_site(model: Any) -> None:
    receipt = attnkit.swap(model, lambda s: "flash" if s.path == LAYERS[1] else None).receipt
    again = attnkit.reapply(build(), receipt).receipt
    assert [site.path for site in again.sites] == [LAYERS[1]]


@pytest.mark.parametrize("name", ["attnkit", "torch", "transformers"])
def test_changed_version_is_reported_by_name(swapped: Any, name: str) -> None:
    now = swapped.receipt.versions[name]
    versions = {**swapped.receipt.versions, name: "0.0.1"}
    with pytest.warns(UserWarning, match=f"other versions: {name} 0.0.1 is now") as caught:
        again = attnkit.reapply(build(), swapped.receipt.model_copy(update={"versions": versions}))
    assert again.receipt.changes == (f"{name} 0.0.1 is now {now}",)
    assert len(caught) == 1


def test_variant_of_another_owner_is_reported_by_name(swapped: Any) -> None:
    owners = {**swapped.receipt.owners, "flash": "flash from acme 2.0"}
    with pytest.warns(UserWarning, match=r"variant 'flash' from .*acme 2\.0 is now from"):
        attnkit.reapply(build(), swapped.receipt.model_copy(update={"owners": owners}))


def test_same_versions_are_not_warned_about(swapped: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert attnkit.reapply(build(), swapped.receipt).receipt.changes == ()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"num_hidden_layers": 1}, r"model\.layers\.1\.self_attn: is gone, LlamaForCausalLM has"),
        ({"num_hidden_layers": 3}, r"model\.layers\.2\.self_attn: is new, the plan's 'layers\.\*'"),
    ],
)
def test_sites_that_are_gone_or_new_are_errors(swapped: Any, changed: Any, told: str) -> None:
    other = build(**changed)
    with pytest.raises(SwapError, match=rf"not of this model, .*as it was:\n  {told}"):
        attnkit.reapply(other, swapped.receipt)
    assert all(layer.self_attn.config is other.config for layer in other.model.layers)


def test_layer_of_another_class_is_an_error(swapped: Any) -> None:
    other = transformers.MistralForCausalLM(transformers.MistralConfig(**GQA)).eval()
    with pytest.raises(SwapError, match="is a MistralAttention, was a LlamaAttention"):
        attnkit.reapply(other, swapped.receipt)


def test_variant_that_is_not_installed_is_an_error(swapped: Any) -> None:
    plan = {"layers.*": {"variant": "acme_window"}}
    with pytest.raises(UnknownVariantError, match="acme_window"):
        attnkit.reapply(build(), swapped.receipt.model_copy(update={"plan": plan}))


@pytest.fixture(params=["multi_head", "gated_linear", "moe"])
def given(request: Any, model: Any) -> tuple[Any, attnkit.Variant]:
    """Return a model with a variant that was given as an object, and is not registered."""
    variant = dataclasses.replace(attnkit.get_variant(request.param), name="acme_own")
    plan: Any = variant
    if variant.family == "feedforward":
        plan = {"*.mlp": {"variant": variant, "num_experts": 2}}
    attnkit.swap(model, plan, accept="different")
    return model, variant


def test_copy_runs_the_variant_that_was_given_as_an_object(given: Any) -> None:
    model, _ = given
    assert torch.equal(logits(copy.deepcopy(model)), logits(model))


def test_model_with_a_variant_that_is_not_known_says_so_when_it_is_loaded(given: Any) -> None:
    model, variant = given
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    told = r"no attention variant 'acme_own'.*was saved with that variant: .*attnkit\.register it"
    with pytest.raises(UnknownVariantError, match=told):
        torch.load(stream, weights_only=False)
    stream.seek(0)
    with attnkit.register(variant):
        loaded = torch.load(stream, weights_only=False)
        assert torch.equal(logits(loaded), logits(model))


def test_checkpoint_without_a_receipt_says_how_to_write_one(model: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no receipt can be read: .*Swap\.save\('.*'\) writes"):
        attnkit.reapply(model, tmp_path)


def test_file_that_is_no_receipt_is_refused(model: Any, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"other\.json: is no receipt of attnkit"):
        attnkit.reapply(model, tmp_path / "other.json")


def test_receipt_is_not_saved_where_there_is_no_checkpoint(swapped: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such checkpoint"):
        swapped.save(tmp_path / "model.pt")
    assert not list(tmp_path.iterdir())


def test_receipt_names_what_ran_what_may_step_in_and_who_offers_it(swapped: Any) -> None:
    told = swapped.receipt
    assert told.plan["layers.*"]["fallback"] == ["reference"]
    assert told.sites[0].implementations == ("flash.tiled",)
    assert told.owners["flash"].count(told.versions["attnkit"]) == 1
