"""Leaks of the whole model: later tokens, padding and other documents, found and named."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from tiny_models import SMALL, lively

import attnkit
from attnkit.errors import UnsupportedError, VerificationError
from attnkit.hosts.leak_probes import by_shape, everything
from attnkit.hosts.protocol import Pair, Probe
from attnkit.reference import softmax
from attnkit.swaps.receipts import SiteReceipt
from attnkit.swaps.verification.leaks import Subject, check_leaks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def build(kind: Any, config: Any, **more: Any) -> Any:
    return lively(lambda: kind(config(**SMALL, **more)))


@pytest.fixture
def llama() -> Any:
    return build(transformers.LlamaForCausalLM, transformers.LlamaConfig)


def outcomes(receipt: Any) -> dict[str, str]:
    """Return what came out by name; both samples of a batch must tell the same."""
    told = {leak.name: leak.outcome for leak in receipt.leaks}
    assert all(told[leak.name] == leak.outcome for leak in receipt.leaks)
    return told


ASKED = {"padding", "causality", "packing", "batch"}


@pytest.mark.parametrize("variant", ["multi_head", "flash"])
def test_causal_model_is_asked_everything_and_equal_to_the_bit(llama: Any, variant: str) -> None:
    receipt = attnkit.swap(llama, variant).receipt
    assert outcomes(receipt) == dict.fromkeys(ASKED, "equal")
    assert [leak.changed for leak in receipt.leaks if leak.name == "batch"] == [
        "another first sample",
        "another last sample",
    ]
    assert "other tokens from position 9 on" in str(receipt)


def test_swap_of_other_mathematics_is_asked_too(llama: Any) -> None:
    plan = {"variant": "sliding_window", "window_size": 4}
    receipt = attnkit.swap(llama, plan, accept="different").receipt
    assert outcomes(receipt) == dict.fromkeys(ASKED, "equal")


def test_bidirectional_model_is_asked_about_padding_and_neighbours() -> None:
    model = build(transformers.BertModel, transformers.BertConfig)
    told = outcomes(attnkit.swap(model, "flash").receipt)
    assert told == {"padding": "equal", "batch": "equal"}


def test_sample_without_padding_is_not_asked_about_it(llama: Any) -> None:
    ids = torch.randint(3, 97, (1, 9), generator=torch.Generator().manual_seed(0))
    receipt = attnkit.swap(llama, "flash", sample={"input_ids": ids}).receipt
    assert outcomes(receipt) == {"causality": "equal", "packing": "equal"}


def test_padding_that_causality_hides_anyway_has_shown_nothing(llama: Any) -> None:
    ids = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(0))
    real = torch.ones_like(ids)
    real[0, 6:] = 0
    receipt = attnkit.swap(
        llama, "flash", sample={"input_ids": ids, "attention_mask": real}
    ).receipt
    told = {"padding": "idle", "causality": "equal", "packing": "equal", "batch": "equal"}
    assert outcomes(receipt) == told
    assert "idle" in str(receipt)


def test_tokens_of_a_mixture_stay_within_rounding_in_other_company() -> None:
    model = build(
        transformers.MixtralForCausalLM,
        transformers.MixtralConfig,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    leaks = attnkit.swap(model, "flash").receipt.leaks
    assert {leak.name for leak in leaks} == ASKED
    assert {leak.outcome for leak in leaks} <= {"equal", "rounding"}


def test_what_the_model_does_not_keep_apart_itself_is_no_fault_of_the_swap() -> None:
    # its masks do not look at position_ids
    experts: Any = {"num_local_experts": 4, "num_experts_per_tok": 2, "eos_token_id": 2}
    rope: Any = {"rope_type": "default", "rope_theta": 1e4}
    heads: Any = {"num_key_value_heads": 2, "head_dim": 16, "rope_parameters": rope}
    model = build(transformers.GptOssForCausalLM, transformers.GptOssConfig, **experts, **heads)
    assert outcomes(attnkit.swap(model, "multi_head").receipt)["packing"] == "own"


def variant(name: str, attend: Callable[..., Any]) -> attnkit.Variant:
    """Return a variant that promises what multi_head's reference promises."""
    model = attnkit.get_variant("multi_head")
    reference = model.implementations[0]
    own = dataclasses.replace(reference, name="own", function=attend, cost=lambda _: 0.0)
    return dataclasses.replace(model, name=name, implementations=(reference, own))


def blind_to_documents(*tensors: Any, mask: Any, **rest: Any) -> Any:
    """Be right on every sample but packed ones, which no trial sees."""
    packed = {"documents", "dense"} & mask.parts
    return softmax(*tensors, mask=attnkit.causal() if packed else mask, **rest)


def refusing_documents(*tensors: Any, mask: Any, **rest: Any) -> Any:
    if {"documents", "dense"} & mask.parts:
        raise UnsupportedError("no documents here")
    return softmax(*tensors, mask=mask, **rest)


def breaking_at_documents(*tensors: Any, mask: Any, **rest: Any) -> Any:
    if {"documents", "dense"} & mask.parts:
        raise ZeroDivisionError("by documents")
    return softmax(*tensors, mask=mask, **rest)


def test_leak_between_documents_is_found_and_the_swap_undone(llama: Any) -> None:
    told = r"packing leaks: .* in the first 8 positions, use_cache=False.*logits.* noise units"
    with (
        attnkit.register(variant("blind", blind_to_documents)),
        pytest.raises(VerificationError, match=told),
    ):
        attnkit.swap(llama, "blind")
    assert all(layer.self_attn.config is llama.config for layer in llama.model.layers)


def test_inputs_that_the_variant_refuses_are_recorded_with_its_words(llama: Any) -> None:
    with attnkit.register(variant("refusing", refusing_documents)):
        receipt = attnkit.swap(llama, "refusing").receipt
    refused = [leak for leak in receipt.leaks if leak.outcome == "refused"]
    assert [(leak.name, leak.why) for leak in refused] == [("packing", "no documents here")]
    assert "packing: refused: no documents here" in str(receipt)


def test_inputs_that_break_the_swapped_model_alone_undo_the_swap(llama: Any) -> None:
    with (
        attnkit.register(variant("breaking", breaking_at_documents)),
        pytest.raises(VerificationError, match=r"runs before and not after: Zero.*by documents"),
    ):
        attnkit.swap(llama, "breaking")


@pytest.mark.parametrize("leaking", ["causality", "padding"])
def test_leak_that_begins_after_the_trial_is_found(llama: Any, leaking: str) -> None:
    ids = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(0))
    sample = {"input_ids": ids} if leaking == "causality" else None
    calls = []

    def late(query: Any, key: Any, value: Any, *, mask: Any, **rest: Any) -> Any:
        # B = 2 leaves out the small call that asks whether it runs, 20 keys the calls beyond the
        # sample; 2 layers by 2 calls each in the trial, after it, and for two other neighbours
        of_model = query.shape[0] == 2 and key.shape[2] <= 20
        calls.append(of_model)
        if not of_model or sum(calls) <= 16 or query.shape[2] == 1:
            return softmax(query, key, value, mask=mask, **rest)
        seen = attnkit.full() if leaking == "causality" else attnkit.causal()
        return softmax(query, key, value, mask=seen, **rest)

    with (
        attnkit.register(variant("late", late)),
        pytest.raises(VerificationError, match=f"{leaking} leaks: with other tokens"),
    ):
        attnkit.swap(llama, "late", sample=sample)


# the judgement itself, on a model that is one function

ROWS = torch.tensor([True, True, False])
SITE = SiteReceipt(
    path="mixer",
    layer="Mixer",
    variant="flash",
    relation="exact",
    implementations=("flash.tiled",),
    calls=1,
    error_before=0.5,
    error_after=0.5,
    allowed=3.0,
    rows_left_out=0,
)


def noise_of(generator: torch.Generator) -> list[Any]:
    # stands for a mixer: `run` asks it for noise of one unit
    return [lambda shape: 1e-6 * (2 * torch.rand(shape, generator=generator) - 1)]


def judge(
    leak: float,
    own_leak: float = 0.0,
    fails: Any = (),
    seen: float = 1.0,
    elsewhere: float = 0.0,
    bare: Any = None,
) -> tuple[Any, ...]:
    """Ask a model that lets ``leak`` of the last row into the others, ``own_leak`` of its own.

    The last row itself sees ``seen`` of a change. Another output has a leak ``elsewhere``, before
    and after. The inputs where a change must show may be others, ``bare``.
    """

    def run(inputs: Mapping[str, Any], mixers: Any) -> dict[str, torch.Tensor]:
        x, swapped = inputs["x"], mixers == ["variant"]
        if x[2, 0] != 1 and ("after" if swapped else "before") in fails:
            raise ZeroDivisionError
        if "error" in inputs:
            raise inputs["error"]
        y = x[2] * (leak if swapped else own_leak) + torch.ones(3, 4)
        y = torch.cat([y[:2], 1 + seen * (x[2:] - 1)])
        noisy = y + mixers[0](y.shape) if mixers and not swapped else y
        return {"y": noisy, "other": torch.ones(3, 4) + elsewhere * x[2], "loss": x.sum()}

    x = torch.ones(3, 4)
    sample = {"x": x}
    other = {"x": x.clone().index_fill(0, torch.tensor([2]), 2.0)}
    subject = Subject(
        run=run,
        sample=sample,
        before=run(sample, []),
        after=run(sample, ["variant"]),
        mixers=["variant"],  # type: ignore[list-item]  # `run` alone looks at it
        noisy=noise_of,
        sites=[SITE],
    )
    stays = Pair(sample, other, by_shape(ROWS))
    moves = Pair(sample, other, by_shape(~ROWS)) if bare is None else Pair(bare, bare, everything)
    return check_leaks([Probe("causality", "another last row", stays, moves)], subject)


def test_no_change_is_equal() -> None:
    (leak,) = judge(0.0)
    assert (leak.outcome, leak.largest) == ("equal", 0.0)


def test_change_of_the_size_of_noise_is_rounding() -> None:
    (leak,) = judge(1e-6)
    assert leak.outcome == "rounding"
    assert leak.moved == pytest.approx(1e-6 / (1e-6 / 3**0.5 + 2.0**-24), rel=0.5)


def test_change_of_a_hundred_times_the_noise_is_a_leak() -> None:
    with pytest.raises(VerificationError, match=r"causality leaks: .*'y' changed"):
        judge(1e-4)


def test_change_that_nothing_sees_has_shown_nothing() -> None:
    (leak,) = judge(0.0, seen=0.0)
    assert leak.outcome == "idle"


def test_change_that_is_seen_less_where_it_may_be_has_shown_nothing() -> None:
    (leak,) = judge(1e-6, seen=1e-7)
    assert leak.outcome == "idle"


def test_leak_of_the_model_itself_is_its_own() -> None:
    (leak,) = judge(1e-4, own_leak=1e-2)
    assert leak.outcome == "own"


def test_leak_of_the_model_itself_hides_none_of_the_swap() -> None:
    assert judge(1e-6, elsewhere=1e-2)[0].outcome == "own"
    with pytest.raises(VerificationError, match=r"causality leaks: .*'y' changed"):
        judge(1e-4, elsewhere=1e-2)


def test_change_that_the_variant_refuses_to_show_has_shown_nothing() -> None:
    (leak,) = judge(0.0, bare={"x": torch.ones(3, 4), "error": UnsupportedError("no mask")})
    assert (leak.outcome, leak.why) == ("idle", "no mask")


def test_change_that_the_model_itself_cannot_show_has_shown_nothing() -> None:
    (leak,) = judge(0.0, bare={"x": torch.ones(3, 4), "error": KeyError("mask")})
    assert leak.outcome == "idle"


def test_probe_that_the_model_itself_does_not_take_is_left_out() -> None:
    assert judge(0.0, fails=("before", "after")) == ()


def test_probe_that_fails_after_the_swap_alone_is_an_error() -> None:
    with pytest.raises(VerificationError, match="runs before and not after"):
        judge(0.0, fails=("after",))
