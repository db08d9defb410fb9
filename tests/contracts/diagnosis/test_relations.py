"""A rule between calls of a layer is shown to be broken by a script that stands alone."""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import mutants_attention
import mutants_integration
import mutants_layers
import mutants_mixer
import mutants_softmax
import mutants_stepping
import mutants_surroundings
import pytest
import torch

import attnkit
import attnkit_contracts
from attnkit_contracts.diagnosis.relations import RELATIONS, shown
from attnkit_contracts.diagnosis.scripts import related_script
from attnkit_contracts.subjects.layers import LayerSubject
from attnkit_contracts.subjects.opener import subject_of

if TYPE_CHECKING:
    from attnkit.interface import Variant
    from attnkit_contracts import Record

MODULES = (
    mutants_mixer,
    mutants_layers,
    mutants_stepping,
    mutants_attention,
    mutants_softmax,
    mutants_surroundings,
    mutants_integration,
)
RULES = {rule for relation in RELATIONS for rule in relation.rules}
OTHERS = (
    ("mutant_state_changed", "T4.layer_state"),
    ("mutant_state_reordered_by_nothing", "T4.layer_state"),
    ("mutant_cut_too_little", "T4.truncate"),
    ("mutant_layer_hidden_buffer", "I4.state_dict"),
    ("mutant_layer_lossy_state", "I4.states"),
    ("mutant_layer_padding_forgotten_by_state", "T7.masked_steps"),
    ("mutant_nondeterministic", "S3.determinism"),
    ("mutant_softcap_in_silence", "S10.refused"),
    ("mutant_dtype_in_silence", "S10.dtypes"),
    ("mutant_other_with_gradients", "S11.grad_modes"),
)
"""By name, with the check; what the mixers of `mutants_mixer` show is shown by them."""

KNOWN = {each[0].name: (module, each) for module in MODULES for each in module.MUTANTS}
SHOWN = [
    *(each for each in mutants_mixer.MUTANTS if each[1] in RULES and "unsaved" not in each[0].name),
    *(KNOWN[name][1] for name, _ in OTHERS),
]


def record_of(
    variant: Variant, check: str, dtype: str = "float32", subject: str = "layer"
) -> Record:
    planned = attnkit_contracts.plan(
        variant, implementations=[subject], dtypes=[dtype], tier="full"
    )
    found = (each.run() for each in planned if each.check.id == check)
    return next(each for each in found if each.status != "passed")


def printed(script: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(script, {})
    return out.getvalue()


def test_every_relation_is_shown() -> None:
    shown = {check for _, check, *_ in SHOWN}
    left = [relation.told for relation in RELATIONS if not shown & {*relation.rules}]

    # mutants show these to be wrong in a call, or nothing but their backward pass to be
    assert left == [
        "the output under autocast is not the one without",
        "a {way} of the layer gives something else",
        "a {way} of the layer shares weights with it",
    ]


@pytest.mark.parametrize("given", SHOWN, ids=lambda given: f"{given[0].name}")
def test_a_script_fails_as_long_as_the_rule_is_broken(
    given: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant, check, subject, *dtype = given
    # by a name that a script can import
    monkeypatch.setattr(mutants_mixer, "WRONG", variant, raising=False)
    record = record_of(variant, check, *dtype or ["float32"], subject)
    script = record.reproduction

    assert record.status == "failed"
    assert "from mutants_mixer import WRONG" in script
    assert "attnkit_contracts" not in script
    assert len(script.splitlines()) <= 35
    with pytest.raises(AssertionError, match=re.escape(str(record.diagnosis))):
        printed(script)
    if check == "S10.refused":
        assert "softcap=" in script
    if variant in [each[0] for each in mutants_mixer.MUTANTS]:
        monkeypatch.setattr(mutants_mixer, "WRONG", mutants_mixer.RIGHT)
        printed(script)


def test_a_copy_that_shares_weights_is_said(wrong: dict[str, Variant]) -> None:
    record = record_of(wrong["mutant_layer_shared_copy"], "I4.copies")

    assert str(record.diagnosis) == "a deepcopy of the layer shares weights with it"


def test_the_smallest_call_is_small() -> None:
    wrong = {variant.name: variant for variant, *_ in mutants_mixer.MUTANTS}
    record = record_of(wrong["mutant_mixer_batch_normalised"], "A1.batch_independence", "float32")
    assert str(record.diagnosis) == "sample 0 gives something else alone"
    assert record.smallest.startswith("x=(2, 1, 32)") or record.smallest.startswith("x=(3, 1, 32)")


@pytest.mark.parametrize("rule", sorted({each[1] for each in mutants_mixer.MUTANTS} & RULES))
def test_a_right_layer_breaks_none(rule: str) -> None:
    planned = attnkit_contracts.plan(
        mutants_mixer.RIGHT, implementations=["layer"], dtypes=["float64"]
    )
    subject = subject_of(next(iter(planned)).target)
    assert isinstance(subject, LayerSubject)
    call = subject.draw("right", batch=3, length=9)
    calls = [call]
    if rule in ("M9.padding_content", "M11.packed"):
        ids = torch.tensor([[0] * 4 + [1] * 5] * 3)
        masks = (attnkit.padding(torch.tensor([9, 4, 7])), attnkit.documents(ids))
        calls = [call.masked(mask) for mask in masks]
    about = (each for each in RELATIONS if rule in each.rules and each.applies(subject, ""))
    for relation in about:
        assert [shown(relation, subject, each, "") for each in calls] == [None] * len(calls)


@pytest.mark.parametrize("name", ["multi_head", "gated_linear"])
def test_right_variants_break_none(name: str) -> None:
    for where in ("layer", "reference"):
        planned = attnkit_contracts.plan(name, implementations=[where], dtypes=["float32"])
        subject = subject_of(next(iter(planned)).target)
        call = subject.draw_whole("right", batch=2, length=9)
        for relation in (each for each in RELATIONS if each.applies(subject, "")):
            assert shown(relation, subject, call, "") is None


@pytest.mark.parametrize(("device", "said"), [("cpu", ""), ("cuda", '"cuda", ')])
def test_a_layer_is_made_on_the_device_that_it_was_checked_on(device: str, said: str) -> None:
    planned = attnkit_contracts.plan(mutants_mixer.RIGHT, dtypes=["float32"])
    subject = subject_of(next(iter(planned)).target)
    assert isinstance(subject, LayerSubject)
    call = subject.draw("made")
    # whether there is such a device or not: the script is only written
    subject.target = replace(subject.target, device=device)
    script = related_script(subject, call, lambda _: ["assert False"])

    assert f"layer = layer.to({said}torch.float32).eval()" in script
