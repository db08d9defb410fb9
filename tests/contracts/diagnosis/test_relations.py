"""A rule between calls of a layer is shown to be broken by a script that stands alone."""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace
from typing import TYPE_CHECKING

import mutants_mixer
import pytest
import torch

import attnkit
import attnkit_contracts
from attnkit_contracts.diagnosis.relations import RELATIONS
from attnkit_contracts.diagnosis.scripts import layer_script
from attnkit_contracts.subjects.layers import LayerSubject
from attnkit_contracts.subjects.opener import subject_of

if TYPE_CHECKING:
    from attnkit.interface import Variant
    from attnkit_contracts import Record

RULES = {relation.rule for relation in RELATIONS}
SHOWN = [each for each in mutants_mixer.MUTANTS if each[1] in RULES]


def record_of(variant: Variant, check: str, dtype: str) -> Record:
    planned = attnkit_contracts.plan(variant, implementations=["layer"], dtypes=[dtype])
    return next(each for each in planned if each.check.id == check).run()


def printed(script: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(script, {})
    return out.getvalue()


def test_every_relation_is_shown() -> None:
    assert {check for _, check, *_ in SHOWN} == RULES


@pytest.mark.parametrize(
    ("variant", "check", "dtype"),
    [(variant, check, dtype) for variant, check, _, dtype in SHOWN],
    ids=lambda given: getattr(given, "name", None),
)
def test_a_script_fails_as_long_as_the_layer_breaks_the_rule(
    variant: Variant, check: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # by a name that a script can import
    monkeypatch.setattr(mutants_mixer, "WRONG", variant, raising=False)
    record = record_of(variant, check, dtype)
    script = record.reproduction

    assert record.status == "failed"
    assert "from mutants_mixer import WRONG" in script
    assert "attnkit_contracts" not in script
    assert len(script.splitlines()) <= 25
    with pytest.raises(AssertionError, match=str(record.diagnosis).replace("[", r"\[")):
        printed(script)
    monkeypatch.setattr(mutants_mixer, "WRONG", mutants_mixer.RIGHT)
    printed(script)


def test_the_smallest_call_is_small() -> None:
    wrong = {variant.name: variant for variant, *_ in mutants_mixer.MUTANTS}
    record = record_of(wrong["mutant_mixer_batch_normalised"], "A1.batch_independence", "float32")
    assert str(record.diagnosis) == "sample 0 gives something else alone"
    assert record.smallest.startswith("x=(2, 1, 32)") or record.smallest.startswith("x=(3, 1, 32)")


@pytest.mark.parametrize("rule", sorted(RULES))
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
    for relation in (each for each in RELATIONS if each.rule == rule):
        assert any(list(relation.cases(subject, each)) for each in calls)
        assert [relation.shown(subject, each) for each in calls] == [None] * len(calls)


@pytest.mark.parametrize(("device", "said"), [("cpu", ""), ("cuda", '"cuda", ')])
def test_a_layer_is_made_on_the_device_that_it_was_checked_on(device: str, said: str) -> None:
    planned = attnkit_contracts.plan(mutants_mixer.RIGHT, dtypes=["float32"])
    subject = subject_of(next(iter(planned)).target)
    assert isinstance(subject, LayerSubject)
    call = subject.draw("made")
    # whether there is such a device or not: the script is only written
    subject.target = replace(subject.target, device=device)
    script = layer_script(subject, call, lambda _: ["assert False"])

    assert f"layer = layer.to({said}torch.float32).eval()" in script
