"""A run in several processes reports what a run in one does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mutants_softmax
import pytest

import attnkit_contracts
from attnkit.errors import ArgumentError
from attnkit_contracts.running.instance import Instance

if TYPE_CHECKING:
    from attnkit_contracts import Record, Report

pytestmark = pytest.mark.slow

WRONG = next(each[0] for each in mutants_softmax.MUTANTS if each[1] == "M1.suffix_perturbation")


def told(report: Report) -> list[dict[str, Any]]:
    """Return all that is written down, but for what a clock says."""
    assert all(record.duration_ms > 0 for record in report.records)
    return [record.model_dump(exclude={"duration_ms"}) for record in report.records]


def test_two_processes_report_what_one_does_and_share_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here: list[str] = []
    run = Instance.run

    def noted(instance: Instance, **given: Any) -> Record:
        here.append(instance.id)
        return run(instance, **given)

    asked: Any = ("self_attention", "moe", WRONG)
    some: Any = {"dtypes": ["float32"], "implementations": ["plain", "loop", "wrong"]}
    arrived: list[str] = []
    one = attnkit_contracts.check(*asked, **some)
    monkeypatch.setattr(Instance, "run", noted)
    two = attnkit_contracts.check(
        *asked, **some, jobs=2, progress=lambda record: arrived.append(record.id)
    )

    assert told(two) == told(one)
    assert two.header == one.header
    assert sorted(arrived) == sorted(record.id for record in one.records)
    # the other processes know what is installed, and nothing of a variant of this session
    assert {each.partition("/")[0] for each in here} == {WRONG.name}


def test_fewer_processes_than_one_are_refused() -> None:
    with pytest.raises(ArgumentError, match="jobs must be at least 1, got 0"):
        attnkit_contracts.check("self_attention", dtypes=["float32"], jobs=0)


def test_nothing_runs_beside_what_measures_time() -> None:
    timed = {each.id for each in attnkit_contracts.all_checks() if each.measures_time}

    assert timed == {"I7.speed"}
