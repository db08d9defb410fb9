"""Weights that a swap adds: saved, loaded and put back, and the layers whose place they take."""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from tiny_models import GQA

import attnkit
from attnkit.errors import (
    ArgumentError,
    ConfigError,
    SwapError,
    SwapRefusedError,
    VerificationError,
)
from attnkit_plugins.feedforward.moe.layer import MoELayer
from attnkit_plugins.feedforward.moe.site import upcycle

if TYPE_CHECKING:
    from pathlib import Path

IDS = torch.randint(3, 97, (2, 11), generator=torch.Generator().manual_seed(0))
UPCYCLED: Any = {"*.mlp": {"variant": "moe", "num_experts": 2, "top_k": 1}}
PLANS: Any = [UPCYCLED, "gated_linear", "state_space"]


def build() -> Any:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**GQA)).eval()


def shuffled() -> Any:
    """Return the model as a checkpoint without its dense layers leaves it: they are random."""
    model = build()
    for layer in model.model.layers:
        for parameter in layer.mlp.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(IDS).logits
    return out


def trained(plan: Any) -> tuple[Any, Any]:
    """Swap, and move what the swap added as training would."""
    model = build()
    names = set(model.state_dict())
    swapped = attnkit.swap(model, plan, accept="different")
    new = [p for name, p in model.named_parameters() if name not in names]
    assert new
    with torch.no_grad():
        for parameter in new:
            parameter.add_(torch.randn_like(parameter) / 4)
    return model, swapped


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_folder_loads_as_the_trained_model(plan: Any, tmp_path: Path) -> None:
    model, swapped = trained(plan)
    model.save_pretrained(tmp_path)
    swapped.save(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    again = attnkit.reapply(loaded, tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    again.restore()
    swapped.restore()
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_file_of_torch_loads_as_the_trained_model(plan: Any, tmp_path: Path) -> None:
    model, swapped = trained(plan)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    swapped.save(tmp_path / "model.pt")
    torch.manual_seed(1)
    loaded = transformers.LlamaForCausalLM(model.config).eval()
    loaded.load_state_dict(torch.load(tmp_path / "model.pt"), strict=False)
    attnkit.reapply(loaded, tmp_path / "model.pt")
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_reapplied_receipt_is_of_the_trained_weights(plan: Any, tmp_path: Path) -> None:
    model, swapped = trained(plan)
    swapped.save(tmp_path)
    other = build()
    moved = (logits(model).double() - logits(other).double()).abs().max()
    receipt = attnkit.reapply(other, tmp_path, sample={"input_ids": IDS}).receipt
    told = {out.name: out.largest for out in receipt.outputs}
    assert told["logits"] == float(moved)
    assert {site.relation for site in receipt.sites} == {"different"}
    assert all((site.drift or 0.0) > 1e-3 for site in receipt.sites)


def test_wrong_implementation_that_only_training_shows_is_caught(tmp_path: Path) -> None:
    variant = attnkit.get_variant("moe")

    def exchanged(x: Any, experts: Any, gates: Any, *, weights: Any) -> Any:
        from attnkit_plugins.feedforward.moe.loop import feedforward

        return feedforward(x, experts, gates.roll(1, -1), weights=weights)

    loop = next(each for each in variant.implementations if each.name == "loop")
    own = dataclasses.replace(loop, name="own", function=exchanged, cost=lambda _: 0.0)
    wrong = dataclasses.replace(
        variant, name="exchanged", implementations=(*variant.implementations, own)
    )
    with attnkit.register(wrong):
        _, swapped = trained({"*.mlp": {"variant": "exchanged", "num_experts": 2, "top_k": 2}})
        swapped.save(tmp_path)
        other = shuffled()
        before = copy.deepcopy(other.state_dict())
        told = r"layers\.1\.mlp \(LlamaMLP\): exchanged\.own is off by"
        with pytest.raises(VerificationError, match=told):
            attnkit.reapply(other, tmp_path)
    assert all(torch.equal(each, before[name]) for name, each in other.state_dict().items())


def test_layer_that_does_not_say_what_it_computes_is_not_put_back(tmp_path: Path) -> None:
    variant = attnkit.get_variant("moe")

    class Silent(MoELayer):
        decided: Any = None

    def make(weights: Any, options: Any, *, variant: Any) -> Any:
        layer = upcycle(weights, options, variant=variant)
        layer.__class__ = Silent
        return layer

    assert variant.placement is not None
    placement = dataclasses.replace(variant.placement, build=make)
    silent = dataclasses.replace(variant, name="silent", placement=placement)
    with attnkit.register(silent):
        _, swapped = trained({"*.mlp": {"variant": "silent", "num_experts": 2, "top_k": 1}})
        swapped.save(tmp_path)
        with pytest.raises(SwapRefusedError, match="Silent has no method 'decided'"):
            attnkit.reapply(build(), tmp_path)


def test_swap_without_weights_writes_the_receipt_alone(tmp_path: Path) -> None:
    attnkit.swap(build(), "flash").save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["attnkit.json"]


def test_weights_never_take_the_name_of_the_model_s_own_file(tmp_path: Path) -> None:
    _, swapped = trained(UPCYCLED)
    swapped.save(tmp_path / "model.json")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"model.json", "model.attnkit.safetensors"}


def test_missing_weights_are_refused_before_anything_changes(tmp_path: Path) -> None:
    _, swapped = trained("gated_linear")
    swapped.save(tmp_path)
    (tmp_path / "attnkit.safetensors").unlink()
    other = build()
    before = logits(other)
    with pytest.raises(ConfigError, match=r"attnkit\.safetensors: is missing, .*copy it there"):
        attnkit.reapply(other, tmp_path)
    assert torch.equal(logits(other), before)


def test_receipt_alone_is_refused_where_weights_were_added() -> None:
    _, swapped = trained(UPCYCLED)
    with pytest.raises(ConfigError, match=r"added weights at model\.layers\.0\.mlp, .*give where"):
        attnkit.reapply(build(), swapped.receipt)


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    _, swapped = trained("gated_linear")
    swapped.save(tmp_path)
    (tmp_path / "attnkit.safetensors").write_bytes(b"no")
    with pytest.raises(ConfigError, match=r"attnkit\.safetensors: cannot be read"):
        attnkit.reapply(build(), tmp_path)


@pytest.mark.parametrize(("plan", "layer"), [("gated_linear", "self_attn"), (UPCYCLED, "mlp")])
def test_weights_of_other_shapes_leave_the_model_as_it_was(
    plan: Any, layer: str, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    _, swapped = trained(plan)
    swapped.save(tmp_path)
    file = tmp_path / "attnkit.safetensors"
    kept = load_file(file)
    cut = {name: t[:1].clone() if name.startswith("added") else t for name, t in kept.items()}
    save_file(cut, file)
    other = shuffled()
    before = logits(other)
    with pytest.raises(ConfigError, match=rf"added\.model\.layers\.0\.{layer}\. holds"):
        attnkit.reapply(other, tmp_path)
    assert torch.equal(logits(other), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_restore_after_a_conversion_leaves_one_dtype(dtype: torch.dtype) -> None:
    model = build()
    layer = model.model.layers[0].mlp
    swapped = attnkit.swap(model, UPCYCLED)
    model.to(dtype)
    swapped.restore()
    assert model.model.layers[0].mlp is layer
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert torch.equal(logits(model), logits(build().to(dtype)))


def test_experts_of_a_frozen_layer_are_frozen() -> None:
    model = build().requires_grad_(requires_grad=False)
    model.model.layers[1].mlp.requires_grad_(requires_grad=True)
    attnkit.swap(model, UPCYCLED)
    told = [{p.requires_grad for p in layer.mlp.parameters()} for layer in model.model.layers]
    assert told == [{False}, {True}]


@pytest.mark.parametrize(
    "register",
    ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"],
)
def test_dense_layer_with_hooks_is_refused(register: str) -> None:
    model = build()
    getattr(model.model.layers[1].mlp, register)(lambda *_: None)
    with pytest.raises(SwapRefusedError, match=r"layers\.1\.mlp\n +LlamaMLP has hooks"):
        attnkit.swap(model, UPCYCLED)


def test_layer_that_is_the_model_is_refused_and_left_alone() -> None:
    layer = build().model.layers[0].mlp
    children = list(layer._modules)
    with pytest.raises(SwapRefusedError, match=r"\(model\)\n +LlamaMLP is the model itself"):
        attnkit.swap(layer, UPCYCLED["*.mlp"], sample={"x": torch.randn(1, 5, 64)})
    assert list(layer._modules) == children


def test_one_failing_undo_keeps_no_other_from_being_undone() -> None:
    model = build()
    config = model.config
    swapped = attnkit.swap(model, "flash")
    last, first = swapped._attachments[1], swapped._attachments[0]

    def fail() -> None:
        raise KeyError("gone")

    object.__setattr__(last, "undo", fail)
    with pytest.raises(SwapError, match=r"1 of 2 sites could not be undone, .*\n  KeyError"):
        swapped.restore()
    assert model.model.layers[0].self_attn.config is config
    assert first is not last
    assert not swapped.active
    swapped.restore()


def test_site_that_cannot_take_a_hook_is_left_as_it_was() -> None:
    model = build()
    before, layer = logits(model), model.model.layers[1].self_attn
    config = layer.config

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("takes no hooks")

    layer.register_forward_pre_hook = fail
    with pytest.raises(RuntimeError, match="takes no hooks"):
        attnkit.swap(model, "gated_linear", accept="different")
    assert layer.config is config
    assert all(not each.self_attn._forward_pre_hooks for each in model.model.layers)
    assert torch.equal(logits(model), before)


def test_restore_is_refused_where_what_the_swap_added_was_taken_out() -> None:
    model = build()
    before, layer = logits(model), model.model.layers[1].self_attn
    swapped = attnkit.swap(model, "gated_linear", accept="different")
    after, added = logits(model), layer.attnkit
    del layer.attnkit
    with pytest.raises(
        SwapError, match=r"nothing was changed:\n  .*1\.self_attn\.attnkit was .*put"
    ):
        swapped.restore()
    assert torch.equal(logits(model), after)
    layer.attnkit = added
    swapped.restore()
    assert torch.equal(logits(model), before)


def test_recurrence_with_one_failing_step_is_undone_by_the_others() -> None:
    model = build()
    before, layer = logits(model), model.model.layers[1].self_attn
    swapped = attnkit.swap(model, "gated_linear", accept="different")
    last: Any = swapped._attachments[1].attachment

    def fail() -> None:
        raise KeyError("gone")

    last.steps.callback(fail)
    with pytest.raises(SwapError, match=r"1 of 2 sites could not be undone, .*\n  KeyError"):
        swapped.restore()
    assert "attnkit" not in layer._modules
    assert not layer._forward_pre_hooks
    assert torch.equal(logits(model), before)


def test_sample_that_is_no_mapping_is_an_error() -> None:
    sample: Any = IDS
    with pytest.raises(ArgumentError, match=r"sample must be keyword arguments.*got Tensor"):
        attnkit.swap(build(), "flash", sample=sample)


@pytest.mark.parametrize("given", [True, "4", 4.0])
def test_window_that_is_no_whole_number_is_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match="window_size"):
        attnkit.explain(build(), {"variant": "flash", "window_size": given})
