"""Checks of extensions, tried on the wrong variants that they bring.

A check that catches nothing looks like one that everything passes. So a check enters with a wrong
variant (`Check.catches`), and a report that has the check says whether it caught it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnkit.registry import registry
from attnkit_contracts.catalogue import Check
from attnkit_contracts.definitions.answers import Answers
from attnkit_contracts.reports.records import Proof
from attnkit_contracts.running.instance import Instance
from attnkit_contracts.running.plan import applies
from attnkit_contracts.subjects.opener import targets

if TYPE_CHECKING:
    from collections.abc import Iterable

    from attnkit.interface import Variant

DTYPE = "float32"
"""What wrong variants are tried in, where they promise it: exact enough to show any mistake."""


def of_extensions(checks: Iterable[Check]) -> tuple[Check, ...]:
    """Return those checks that an extension brings."""
    further = {each.id for each in registry.default().contracts() if isinstance(each, Check)}
    return tuple(each for each in checks if each.id in further)


def prove(check: Check, seed: int = 0) -> tuple[Proof, ...]:
    """Run a check on each of its wrong variants."""
    return tuple(
        Proof(check=check.id, wrong=wrong.name, caught_by=_caught_by(check, wrong, seed))
        for wrong in check.catches()
    )


def _caught_by(check: Check, wrong: Variant, seed: int) -> str:
    """Return the id of the first instance that fails; an error or an undecided one is no catch."""
    every = targets(
        wrong, dtypes=None, device="cpu", implementations=None, seed=seed, answers=Answers()
    )
    found = [each for each in every if applies(check, each)]
    for target in [each for each in found if each.dtype == DTYPE] or found:
        for params in check.cases(target.promises):
            instance = Instance(target, check, params)
            if instance.run(explain=False).status == "failed":
                return instance.id
    return ""
