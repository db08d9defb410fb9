"""A family that the suite has no record of is judged by its layer; one record is all it needs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import mutants_mixer
import pytest

import attnkit
import attnkit_contracts
from attnkit.families import Family
from attnkit_contracts.subjects import families
from attnkit_contracts.subjects.families import SuiteFamily
from attnkit_contracts.subjects.layers import MixerLayer
from attnkit_contracts.subjects.opener import subject_of
from attnkit_contracts.subjects.softmax import SoftmaxOperation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from attnkit.interface import Variant
    from attnkit_contracts.running.instance import Instance


@pytest.fixture(autouse=True)
def waves() -> Iterator[None]:
    """A family that knows nothing of the suite."""
    with attnkit.register(Family(name="waves", summary="none", door="none")):
        yield


def of_family(variant: Variant, family: Any) -> Variant:
    return replace(variant, name=f"{variant.name}_of_{family}", family=family)


def planned(variant: Variant) -> list[Instance]:
    return [*attnkit_contracts.plan(variant, dtypes=["float32"])]


def checks(variant: Variant) -> set[tuple[str, str, str]]:
    return {(i.target.implementation, i.check.id, str(i.params)) for i in planned(variant)}


def test_a_family_without_a_record_has_the_checks_of_any_layer() -> None:
    waves = of_family(mutants_mixer.RIGHT, "waves")

    assert checks(waves) == checks(mutants_mixer.RIGHT) != set()
    subject = subject_of(planned(waves)[0].target)
    assert isinstance(subject, MixerLayer)


def test_a_layer_of_a_family_without_a_record_passes_what_it_keeps() -> None:
    waves = of_family(mutants_mixer.RIGHT, "waves")
    found = {i.check.id: i.run().status for i in planned(waves) if i.check.group == "M"}

    assert set(found.values()) == {"passed"}
    assert "M1.suffix_perturbation" in found


def test_one_record_gives_a_family_an_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {
        **families.FAMILIES,
        "waves": SuiteFamily(name="waves", operation=SoftmaxOperation, like="softmax"),
    }
    monkeypatch.setattr(families, "FAMILIES", known)
    right = attnkit.get_variant("multi_head")
    waves = of_family(right, "waves")

    assert checks(waves) == checks(right)
    operation = next(i for i in planned(waves) if i.target.implementation == "auto")
    assert isinstance(subject_of(operation.target), SoftmaxOperation)
