"""A swap happens whole or not at all, can be undone in order, and is caught when it is wrong."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from tiny_models import COPIES, GQA, copied

import attnkit
from attnkit.errors import (
    SwapError,
    UnsupportedError,
    VerificationError,
)
from attnkit.reference import softmax
from attnkit.swaps.plan import assign
from attnkit.swaps.transaction import carry_out
from attnkit.swaps.verification.outputs import compare_outputs, noise_of
from attnkit_plugins.hosts.transformers import HOST

if TYPE_CHECKING:
    from collections.abc import Callable

SMALL: dict[str, Any] = {**GQA, "num_hidden_layers": 3}
IDS = torch.randint(3, 97, (2, 11), generator=torch.Generator().manual_seed(0))
LAYERS = tuple(f"model.layers.{number}.self_attn" for number in range(3))


@pytest.fixture
def config() -> Any:
    return transformers.LlamaConfig(**SMALL)


@pytest.fixture
def model(config: Any) -> Any:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(IDS).logits
    return out


def state(model: Any) -> list[object]:
    """Return what must be the same objects, with the same contents, after an undo."""
    told: list[object] = [torch.random.get_rng_state().tolist()]
    for path, module in model.named_modules():
        members = {name: id(value) for name, value in module.__dict__.items()}
        members.pop("training")
        inner = (module._parameters, module._buffers, module._modules)
        names = [{name: id(value) for name, value in each.items()} for each in inner]
        told += [path, type(module), module.training, members, names]
    told += [(id(p), p._version) for p in model.parameters()]
    told += [buffer.tolist() for buffer in model.buffers()]
    told += [dict(vars(model.config))]
    return told


def variant(name: str, attend: Callable[..., Any]) -> attnkit.Variant:
    """Return a variant that promises what multi_head's reference promises."""
    model = attnkit.get_variant("multi_head")
    reference = model.implementations[0]
    own = dataclasses.replace(reference, name="own", function=attend, cost=lambda _: 0.0)
    return dataclasses.replace(model, name=name, implementations=(reference, own))


def test_restore_puts_back_the_same_objects_and_the_same_bits(model: Any) -> None:
    before, out = state(model), logits(model)
    swapped = attnkit.swap(model, "flash")
    assert all(model.get_submodule(path).config is not model.config for path in LAYERS)
    swapped.restore()
    assert state(model) == before
    assert torch.equal(logits(model), out)


def test_restore_twice_does_nothing_the_second_time(model: Any) -> None:
    swapped = attnkit.swap(model, "flash")
    swapped.restore()
    later = attnkit.swap(model, "multi_head")
    swapped.restore()
    assert later.active


def test_exception_in_the_body_of_a_with_restores(model: Any) -> None:
    before = state(model)
    with pytest.raises(KeyboardInterrupt), attnkit.swap(model, "flash"):
        raise KeyboardInterrupt
    assert state(model) == before


def test_random_numbers_and_buffers_that_a_model_uses_up_are_put_back(model: Any) -> None:
    def use_up(module: Any, _: Any) -> None:
        torch.rand(1)
        module.model.rotary_emb.inv_freq.mul_(0.5)

    model.register_forward_pre_hook(use_up)
    before = state(model)
    attnkit.swap(model, "flash").restore()
    assert state(model) == before


def test_explain_and_survey_change_nothing(model: Any) -> None:
    before = state(model)
    attnkit.survey(model)
    assert attnkit.explain(model, "flash").possible
    assert state(model) == before


def test_models_of_one_config_stay_apart(config: Any, model: Any) -> None:
    other = transformers.LlamaForCausalLM(config).eval()
    assert other.config is model.config
    before, out = state(other), logits(other)
    plan = {"variant": "sliding_window", "window_size": 2}
    with attnkit.swap(model, plan, accept="different"):
        assert state(other) == before
        assert torch.equal(logits(other), out)


def test_layers_of_a_plan_run_what_the_first_fitting_pattern_says(model: Any) -> None:
    window = {"variant": "sliding_window", "window_size": 4}
    plan = {"layers.[0-1]": "multi_head", "layers.*": window}
    receipt = attnkit.swap(model, plan, accept="different").receipt
    told = [(site.path, site.variant, site.relation) for site in receipt.sites]
    variants = [("multi_head", "exact"), ("multi_head", "exact"), ("sliding_window", "different")]
    assert told == [(path, *each) for path, each in zip(LAYERS, variants, strict=True)]


def test_layers_outside_the_plan_are_left_alone(model: Any) -> None:
    with attnkit.swap(model, {"layers.1": "flash"}):
        kept = [model.get_submodule(path).config is model.config for path in LAYERS]
    assert kept == [True, False, True]


def test_nested_swaps_unwind_in_order(model: Any) -> None:
    before = state(model)
    with attnkit.swap(model, "multi_head"):
        between = state(model)
        with attnkit.swap(model, {"layers.1": "flash"}):
            pass
        assert state(model) == between
    assert state(model) == before


def test_an_exact_swap_over_one_that_is_not_says_so_and_changes_nothing(model: Any) -> None:
    plan = {"variant": "sliding_window", "window_size": 2}
    with attnkit.swap(model, plan, accept="different"):
        standing = state(model)
        with pytest.raises(VerificationError, match="if another swap stands in these layers"):
            attnkit.swap(model, "flash")
        assert state(model) == standing


def test_restore_out_of_order_is_refused_by_name_and_changes_nothing(model: Any) -> None:
    first = attnkit.swap(model, "multi_head")
    second = attnkit.swap(model, {"layers.1": "flash"})
    standing = state(model)
    told = "model.layers.1.self_attn: 'flash' was swapped in after 'multi_head'"
    with pytest.raises(SwapError, match=told):
        first.restore()
    assert state(model) == standing
    second.restore()
    first.restore()


def test_swaps_of_different_layers_restore_in_any_order(model: Any) -> None:
    before = state(model)
    first = attnkit.swap(model, {"layers.0": "multi_head"})
    second = attnkit.swap(model, {"layers.1": "flash"})
    first.restore()
    second.restore()
    assert state(model) == before


@pytest.mark.parametrize("how", COPIES)
def test_copies_of_a_swapped_model_are_swapped(model: Any, how: str) -> None:
    with attnkit.swap(model, "flash"):
        other = copied(model, how)
        swapped = logits(model)
    assert torch.equal(logits(other), swapped)


class Failing:
    """The host for transformers, which fails at one of its calls, counted from 0."""

    name = "transformers"
    tested = HOST.tested

    def __init__(self, failing: int, error: BaseException) -> None:
        self.left = failing
        self.error = error

    def _count(self) -> None:
        self.left -= 1
        if self.left == -1:
            raise self.error

    def sites(self, model: Any) -> Any:
        return HOST.sites(model)

    def sample(self, model: Any, sites: Any) -> Any:
        self._count()
        return HOST.sample(model, sites)

    def probes(self, model: Any, sites: Any, sample: Any) -> Any:
        self._count()
        return HOST.probes(model, sites, sample)

    def attach(self, model: Any, site: Any, mixer: Any, label: str) -> Any:
        self._count()
        return HOST.attach(model, site, mixer, label)

    def run(self, model: Any, sample: Any) -> Any:
        out = HOST.run(model, sample)
        self._count()
        return out


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_failure_at_any_step_leaves_the_model_as_it_was(model: Any, error: BaseException) -> None:
    model.train()
    model.model.layers[1].eval()
    before = state(model)
    assignments = assign("flash", attnkit.survey(model))
    step = 0
    while True:
        host = Failing(step, error)
        try:
            swapped = carry_out(model, "flash", assignments, {host.name: host}, None, "exact")
        except type(error):
            assert state(model) == before
        except SwapError:
            # the model does not run on a generated sample, says the first run; it no longer
            # runs, say those that look for leaks
            assert state(model) == before
        else:
            break
        step += 1
    # one sample, 7 runs, one list of probes with 8 more runs; 3 sites attached in the
    # rehearsal, for all but the first run, and for good
    assert step == 1 + 7 + 1 + 8 + 3 * 16
    swapped.restore()
    assert state(model) == before


def off_by_a_percent(query: Any, key: Any, value: Any, *, scale: float, **rest: Any) -> Any:
    return softmax(query, key, value, scale=1.01 * scale, **rest)


def blind_to_masks(query: Any, key: Any, value: Any, *, mask: Any, **rest: Any) -> Any:
    return softmax(query, key, value, mask=attnkit.full(), **rest)


def upper_left(query: Any, key: Any, value: Any, *, mask: Any, **rest: Any) -> Any:
    """Align causal masks as torch's ``is_causal``: right but for L != S."""
    seen = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()
    mask = attnkit.dense(seen) if mask.is_causal else mask
    return softmax(query, key, value, mask=mask, **rest)


def not_a_number(query: Any, key: Any, value: Any, **rest: Any) -> Any:
    return softmax(query, key, value, **rest) * math.nan


@pytest.mark.parametrize("attend", [off_by_a_percent, blind_to_masks, not_a_number])
def test_wrong_mathematics_is_refused_with_the_name_of_the_layer(
    model: Any, attend: Callable[..., Any]
) -> None:
    before = state(model)
    wrong = variant(attend.__name__, attend)
    told = rf"model\.layers\.1\.self_attn \(LlamaAttention\): {attend.__name__}\.own is off by"
    with attnkit.register(wrong), pytest.raises(VerificationError, match=told):
        attnkit.swap(model, {"layers.1": attend.__name__})
    assert state(model) == before


def test_output_of_another_layout_is_refused(model: Any) -> None:
    def transposed(*tensors: Any, **rest: Any) -> Any:
        return softmax(*tensors, **rest).transpose(1, 2)

    told = r"must return \(B, H, L, Ev\) = \(2, 4, 17, 16\) in .*, got \(2, 17, 4, 16\)"
    with (
        attnkit.register(variant("transposed", transposed)),
        pytest.raises(UnsupportedError, match=told),
    ):
        attnkit.swap(model, "transposed")


def test_variant_that_changes_its_mind_after_the_trial_is_caught_at_the_outputs(model: Any) -> None:
    calls = []

    def fickle(query: Any, key: Any, value: Any, **options: Any) -> Any:
        # neither the small call that asks whether it runs, nor those beyond the sample
        of_model = query.shape[0] == 2 and key.shape[2] <= 20
        calls.append(of_model)
        # 3 layers by 2 calls in the trial
        late = of_model and sum(calls) > 6
        return (off_by_a_percent if late else softmax)(query, key, value, **options)

    before = state(model)
    with (
        attnkit.register(variant("fickle", fickle)),
        pytest.raises(VerificationError, match=r"output 'logits' .* noise units"),
    ):
        attnkit.swap(model, "fickle")
    assert state(model) == before


def test_variant_that_raises_on_the_real_tensors_is_refused_with_its_words(model: Any) -> None:
    def fussy(query: Any, *rest: Any, **options: Any) -> Any:
        if query.shape[2] == 17:
            raise ValueError("17 is not my number")
        return softmax(query, *rest, **options)

    with (
        attnkit.register(variant("fussy", fussy)),
        pytest.raises(UnsupportedError, match="17 is not my number"),
    ):
        attnkit.swap(model, "fussy")


def test_outputs_of_other_shapes_or_names_are_refused_and_never_broadcast() -> None:
    one, row = torch.ones(2, 3), torch.ones(3)

    with pytest.raises(VerificationError, match=r"'logits': shape \(2, 3\), and .* shape \(3,\)"):
        compare_outputs({"logits": one}, {"logits": row}, [], [])
    with pytest.raises(
        VerificationError, match=r"'loss': no such output, and after the swap shape"
    ):
        compare_outputs({"logits": one}, {"logits": one, "loss": row}, [], [])
    with pytest.raises(VerificationError, match=r"'logits': .* with noise .* no such output"):
        noise_of(lambda _: {}, {"logits": one})


def test_layer_that_the_sample_does_not_reach_is_named() -> None:
    config = transformers.BertConfig(**SMALL, is_decoder=True, add_cross_attention=True)
    model = transformers.BertModel(config).eval()
    with pytest.raises(VerificationError, match=r"without calling encoder\.layer\.0\.cross"):
        attnkit.swap(model, "flash")
