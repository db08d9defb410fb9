"""Every named mistake is recognised in a variant that makes it, and in no other."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import mutants_recurrence
import mutants_softmax
import pytest
import torch

import attnkit
import attnkit_contracts
from attnkit_contracts.definitions import oracle
from attnkit_contracts.definitions.mistakes import mixture as mistakes_mixture
from attnkit_contracts.definitions.mistakes import recurrence as mistakes_recurrence
from attnkit_contracts.definitions.mistakes import softmax as mistakes_softmax
from attnkit_contracts.diagnosis.explain import suspected
from attnkit_contracts.diagnosis.faults import fault_of
from attnkit_contracts.inputs.calls import Call, normal
from attnkit_contracts.subjects.mixtures import MixtureLayer
from attnkit_contracts.subjects.opener import subject_of
from attnkit_contracts.subjects.target import Target
from attnkit_plugins.feedforward.moe import VARIANT as MOE
from attnkit_plugins.feedforward.moe.layer import MoELayer
from attnkit_plugins.recurrence.linear import VARIANT as LINEAR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from attnkit.interface import Variant
    from attnkit.promises import Promises
    from attnkit_contracts.subjects.subject import Subject

SOFTMAX = {each.name: each for each in mistakes_softmax.MISTAKES}
RECURRENCE = {each.name: each for each in mistakes_recurrence.MISTAKES}
MIXTURE = {each.name: each for each in mistakes_mixture.MISTAKES}


def named(subject: Subject, calls: Iterable[Call]) -> tuple[str, ...]:
    """Return the mistakes that explain the first wrong one of some calls."""
    for call in calls:
        if fault_of(subject, call) is not None:
            return tuple(each.name for each in suspected(subject, call).mistakes)
    raise AssertionError("no call is wrong")


def open_wrong(
    variant: Variant, function: Callable[..., Any], promises: Promises, dtype: str = "float32"
) -> Subject:
    """Return the operation of a variant whose implementation ``wrong`` is this function."""
    wrong = replace(variant.implementations[0], name="wrong", function=function, promises=promises)
    made = replace(
        variant,
        name=f"wrong_{variant.name}",
        promises=promises,
        implementations=(variant.implementations[0], wrong),
    )
    target = Target(
        variant=made,
        implementation="wrong",
        promises=promises,
        dtype=dtype,
        device="cpu",
        level="operation",
    )
    return subject_of(target)


@pytest.fixture(scope="module")
def softmax() -> Variant:
    return mutants_softmax.RIGHT


@pytest.fixture(scope="module")
def recurrence() -> Variant:
    return mutants_recurrence.RIGHT


def attending(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    steps: mistakes_softmax.Steps,
    mask: attnkit.Mask,
    dropout_p: float,
    **given: Any,
) -> torch.Tensor:
    """Attend by steps, in float64, then round."""
    tensors = {"query": query, "key": key, "value": value}
    tensors |= {name: given[name] for name in ("bias", "sinks") if given[name] is not None}
    scale = None if given["scale"] == query.shape[3] ** -0.5 else given["scale"]
    extras = {"scale": scale, "softcap": given["softcap"], "dropout_p": dropout_p}
    kept = None
    if dropout_p:
        sizes = (*query.shape[:3], key.shape[2])
        kept = torch.rand(sizes) >= dropout_p
    return mistakes_softmax.attend(Call(tensors, mask, extras), steps, kept).out.to(query.dtype)


@pytest.mark.parametrize("name", SOFTMAX)
def test_a_mistake_of_softmax_attention_is_recognised(name: str, softmax: Variant) -> None:
    # rounding of logits shows in half precision alone
    dtype = "bfloat16" if name == "logits_rounded" else "float32"
    function = functools.partial(attending, steps=SOFTMAX[name].definitions[0])
    promises = softmax.promises.model_copy(update={"dropout": True, "state": False})
    subject = open_wrong(softmax, function, promises, dtype)
    calls = [*subject.telling_calls()]
    if name == "logits_rounded":
        calls = [call.map(lambda _, tensor: 4 * tensor) for call in calls]
    if name == "masked_rows_nan":
        calls = [subject.draw("L > S", length=26).masked(attnkit.dense(torch.zeros(26, 26) > 0))]

    assert named(subject, calls) == (name,)


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_a_mistake_about_a_bias_is_recognised_whatever_its_rank(
    rank: int, softmax: Variant
) -> None:
    function = functools.partial(attending, steps=SOFTMAX["bias_before_scale"].definitions[0])
    promises = softmax.promises.model_copy(update={"state": False})
    subject = open_wrong(softmax, function, promises)
    call = subject.draw("bias", length=9)
    bias = subject.cast(normal(subject.random("rank"), *(1, 2, 9, 9)[4 - rank :]))

    assert named(subject, [call.given(bias=bias)]) == ("bias_before_scale",)


def recurring(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    rules: mistakes_recurrence.Rules,
    layout: Call,
    scale: float,
    options: Any,
    **given: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run a recurrence by rules, in float64, then round."""
    tensors = {"query": query, "key": key, "value": value}
    tensors |= {n: given[n] for n in ("log_decay", "beta", "initial_state") if given[n] is not None}
    call = Call(tensors, layout.mask, {"scale": scale})
    plain = PLAIN.model_validate({"chunk_size": getattr(options, "chunk_size", 1 << 30)})
    found = mistakes_recurrence.run(call, plain, tensors, rules)
    return found["out"].to(value.dtype), found["state"].to(given["initial_state"].dtype)


class PLAIN(attnkit.Options):
    """No features, and nothing to finish."""

    chunk_size: int = 16


MASKED = ("padding_ignored", "padding_decays", "documents_ignored")
NORMALISER = ("normaliser_missing", "normaliser_eps")


@pytest.mark.parametrize("name", [each for each in RECURRENCE if each not in MASKED + NORMALISER])
def test_a_mistake_of_a_recurrence_is_recognised(name: str, recurrence: Variant) -> None:
    rules = RECURRENCE[name].definitions[0]
    function = functools.partial(recurring, rules=rules, layout=Call({}))
    subject = open_wrong(recurrence, function, recurrence.promises)

    assert named(subject, subject.telling_calls()) == (name,)


@pytest.mark.parametrize("name", MASKED)
def test_a_mask_that_a_recurrence_reads_wrongly_is_recognised(
    name: str, recurrence: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = open_wrong(recurrence, recurrence.implementations[0].function, recurrence.promises)
    rules = RECURRENCE[name].definitions[0]

    # padding and documents are attnkit's own to apply: only a subject that does so itself errs
    def both(call: Call, options: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
        found = mistakes_recurrence.run(call, subject.options(), call.tensors, rules)
        return found["out"].float(), found["state"].float()

    monkeypatch.setattr(subject, "both", both)

    assert named(subject, subject.telling_calls()) == (name,)


@pytest.mark.parametrize("name", NORMALISER)
def test_a_wrong_normaliser_is_recognised(name: str) -> None:
    def sums(*tensors: torch.Tensor, **given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        out, state = attnkit.interface.load(LINEAR.implementations[0].function)(*tensors, **given)
        last = torch.ones_like(out[..., -1:]) if name == "normaliser_missing" else out[..., -1:] + 1
        return torch.cat((out[..., :-1], last), -1), state

    subject = open_wrong(LINEAR, sums, LINEAR.promises)

    assert named(subject, subject.telling_calls()) == (name,)


def open_mixture(plan: mistakes_mixture.Plan, **options: Any) -> Subject:
    """Return a mixture of experts that mixes by a plan."""

    class Planned(MoELayer):
        def forward(self, x: torch.Tensor, **given: Any) -> Any:
            mask = given.get("mask", attnkit.full())
            keep = oracle.real_tokens(mask, x.shape[0], x.shape[1], x.device)
            setting = mistakes_mixture.Setting(self.config.top_k, self.config.renormalise, keep)
            tensors = {"x": x, **dict(self.named_parameters())}
            return mistakes_mixture.mix(tensors, setting, plan).to(x.dtype)

    target = Target(
        variant=replace(MOE, name="wrong_moe", layer=Planned),
        implementation="layer",
        promises=MOE.promises,
        dtype="float32",
        device="cpu",
        level="layer",
    )
    return MixtureLayer(target, **options)


@pytest.mark.parametrize("name", MIXTURE)
def test_a_mistake_of_a_mixture_is_recognised(name: str) -> None:
    unasked = {"renormalise": False} if name == "gates_renormalised_unasked" else {}
    subject = open_mixture(MIXTURE[name].definitions[0], **unasked)
    call = subject.draw("mixture", length=20)
    if name == "padding_not_zero":
        call = call.masked(attnkit.padding(torch.tensor([20, 9])))

    assert named(subject, [call]) == (name,)


TWO = (
    ("heads_tiled", "window_one_long"),
    ("causal_one_ahead", "softcap_after_bias"),
    ("bias_before_scale", "window_one_short"),
    ("sinks_ignored", "causal_strict"),
)


def steps_with(*names: str) -> mistakes_softmax.Steps:
    """Return the definition with several mistakes at once."""
    made = mistakes_softmax.RIGHT
    for name in names:
        wrong = vars(SOFTMAX[name].definitions[0]).items()
        right = vars(mistakes_softmax.RIGHT)
        made = replace(made, **{step: way for step, way in wrong if way is not right[step]})
    return made


@pytest.mark.parametrize("names", TWO, ids=" and ".join)
def test_two_mistakes_at_once_are_both_named(names: tuple[str, str], softmax: Variant) -> None:
    function = functools.partial(attending, steps=steps_with(*names))
    promises = softmax.promises.model_copy(update={"state": False})
    subject = open_wrong(softmax, function, promises)
    mask = attnkit.causal() & attnkit.sliding_window(5)
    call = subject.draw("two", length=12, keys=20, heads=4, kv_heads=2, mask=mask)
    (found,) = suspected(
        subject, subject.beside(call, ("bias", "softcap", "sinks"), "two")
    ).mistakes

    assert set(found.name.split("+")) == set(names)
    assert found.statement == " and ".join(SOFTMAX[n].statement for n in found.name.split("+"))


def test_what_other_calls_contradict_is_no_name(softmax: Variant) -> None:
    def unscaled_when_long(*tensors: torch.Tensor, **given: Any) -> torch.Tensor:
        mistaken = tensors[0].shape[2] > 100
        return attending(*tensors, steps=steps_with(*["scale_missing"] * mistaken), **given)

    promises = softmax.promises.model_copy(update={"state": False})
    subject = open_wrong(softmax, unscaled_when_long, promises)
    found = suspected(subject, subject.draw("long", length=101))

    assert found.mistakes == ()
    assert found.here is SOFTMAX["scale_missing"]


def unrelated(mistake: str, *tensors: torch.Tensor, **given: Any) -> torch.Tensor:
    """Attend rightly, but for an error that has no name."""
    if mistake == "scale":
        given["scale"] *= 1.07
    out = attending(*tensors, steps=mistakes_softmax.RIGHT, **given)
    if mistake == "gain":
        return 0.97 * out
    if mistake == "offset":
        return out + 0.1
    if mistake == "element":
        return torch.where(torch.arange(out.shape[2])[:, None] == 1, 1.3 * out, out)
    return out.flip(-1) if mistake == "reversed" else out


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("mistake", ["scale", "gain", "offset", "element", "reversed"])
def test_no_mistake_is_claimed_for_an_unrelated_error(
    mistake: str, dtype: str, softmax: Variant
) -> None:
    promises = softmax.promises.model_copy(update={"state": False})
    subject = open_wrong(softmax, functools.partial(unrelated, mistake), promises, dtype)

    faulty = (call for call in subject.telling_calls() if fault_of(subject, call) is not None)
    found = [suspected(subject, call).mistakes for call in itertools.islice(faulty, 4)]
    assert found == [(), (), (), ()]


def test_the_definitions_beside_the_mistakes_are_the_oracle(softmax: Variant) -> None:
    subject = open_wrong(softmax, softmax.implementations[0].function, softmax.promises)
    off = [
        float((mistakes_softmax.attend(call).out - subject.exact(call)["out"]).abs().max())
        for call in subject.telling_calls()
        if not call.extras.get("dropout_p")
    ]

    # equal sums in another order
    assert max(off) < 1e-13


def test_the_recurrence_beside_the_mistakes_is_the_oracle(recurrence: Variant) -> None:
    subject = open_wrong(recurrence, recurrence.implementations[0].function, recurrence.promises)
    for call in subject.telling_calls():
        found = subject.definition(call, mistakes_recurrence.RIGHT)(call.tensors)
        for got, wanted in zip(found.values(), subject.exact(call).values(), strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-13)


def test_the_mixture_beside_the_mistakes_is_the_oracle() -> None:
    subject = open_mixture(mistakes_mixture.RIGHT)
    call = subject.draw("mixture", length=20)

    assert fault_of(subject, call) is None


def test_names_are_unique_and_there_are_many() -> None:
    every = [*mistakes_softmax.MISTAKES, *mistakes_recurrence.MISTAKES, *mistakes_mixture.MISTAKES]
    by_family = (SOFTMAX, RECURRENCE, MIXTURE)

    assert sum(map(len, by_family)) == len(every) >= 25


def test_float64_computed_in_float32_is_said() -> None:
    def narrow(*tensors: torch.Tensor, **given: Any) -> torch.Tensor:
        out = attending(*tensors, steps=mistakes_softmax.RIGHT, **given)
        return out.float().to(out.dtype)

    promises = mutants_softmax.RIGHT.promises.model_copy(update={"state": False})
    subject = open_wrong(mutants_softmax.RIGHT, narrow, promises, "float64")

    assert suspected(subject, subject.draw("narrow")).in_float32


def test_a_record_names_the_mistake_and_a_green_one_nothing(wrong: dict[str, Variant]) -> None:
    report = attnkit_contracts.check(
        wrong["mutant_heads_tiled"], dtypes=["float32"], implementations=["wrong"]
    )
    told = {record.check: str(record.diagnosis) for record in report.records}

    assert "interleaved (heads_tiled)" in told["A2.head_map"]
    assert told["A4.row_sums"] == ""


LOST = (
    ("mutant_newest_key_dropped", "T5.needle"),
    ("mutant_tail_dropped", "S8.lengths"),
)


@pytest.mark.parametrize(("name", "check"), LOST)
def test_a_lost_newest_key_is_told_from_a_lost_block(
    name: str, check: str, wrong: dict[str, Variant]
) -> None:
    planned = attnkit_contracts.plan(wrong[name], dtypes=["float32"], implementations=["wrong"])
    records = [each.run() for each in planned if each.check.id == check]
    told = [str(each.diagnosis) for each in records if each.status == "failed"]

    assert told[0] == "equals the definition with the newest key dropped (newest_key_dropped)"


def test_a_write_to_an_input_is_told(wrong: dict[str, Variant]) -> None:
    variant = wrong["mutant_in_place_scaling"]
    planned = attnkit_contracts.plan(variant, dtypes=["float32"], implementations=["wrong"])
    (record,) = [each.run() for each in planned if each.check.id == "S2.inputs_unchanged"]

    assert str(record.diagnosis) == "the output is right, but query is written to"


def test_a_gradient_that_is_wrong_alone_is_said(wrong: dict[str, Variant]) -> None:
    (instance,) = [
        each
        for each in attnkit_contracts.plan(
            wrong["mutant_wrong_gradient"], dtypes=["float32"], implementations=["wrong"]
        )
        if each.id.endswith("N2.backward[inputs=causal]")
    ]

    assert "the output is right, the gradient of" in str(instance.run().diagnosis)


def test_failures_are_not_looked_into_unless_asked(wrong: dict[str, Variant]) -> None:
    report = attnkit_contracts.check(
        wrong["mutant_scale_twice"], dtypes=["float32"], implementations=["wrong"], explain=False
    )

    assert not any(record.diagnosis for record in report.failures())
