"""The distinct faults behind the red records of a report: each told once, its repeats folded.

Records show the same fault where they name the same mistake or what is seen is the same fault
wherever it is seen; else where the same check says the same, numbers apart.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from attnkit_contracts.catalogue import all_checks

if TYPE_CHECKING:
    from collections.abc import Iterable

    from attnkit_contracts.reports.records import Record


class Distinct(NamedTuple):
    """A fault.

    Attributes:
        record: That shows it best: with a name and a call, if any has.
        more: The others that show it.
    """

    record: Record
    more: tuple[Record, ...]

    @property
    def sentence(self) -> str:
        """What is wrong, in one."""
        return str(self.record.diagnosis) or self.record.reason or self.record.status

    @property
    def folded(self) -> str:
        """How many more there are; empty for none."""
        count = len(self.more)
        some = "instances" if count > 1 else "instance"
        return f"and {count} more {some} of the same fault" if count else ""


def distinct(records: Iterable[Record]) -> tuple[Distinct, ...]:
    """Return the faults that records show, those with a name first."""
    found: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        found.setdefault(_key(record), []).append(record)
    faults = []
    for group in found.values():
        best = min(group, key=lambda each: (not each.elements, not each.smallest))
        faults.append(Distinct(best, tuple(each for each in group if each is not best)))
    return tuple(sorted(faults, key=lambda each: _rank(each.record)))


def _key(record: Record) -> tuple[str, ...]:
    diagnosis = record.diagnosis
    if diagnosis.is_named:
        return record.variant, *diagnosis.named, str(diagnosis.in_float32)
    if diagnosis.alike:
        return record.variant, diagnosis.seen
    seen = re.sub(r"-?\d+(\.\d+)?(e[-+]?\d+)?", "#", diagnosis.seen)
    return record.variant, record.check, record.status, seen


def _rank(record: Record) -> int:
    if record.diagnosis.is_named:
        return 0
    if record.diagnosis.alike:
        return 1 if record.smallest else 4
    return 2 if record.elements else 3


def rules(records: Iterable[Record]) -> dict[str, str]:
    """Return the rule that each of the checks of records is about; of checks installed here."""
    wanted = {record.check for record in records}
    return {each.id: each.statement for each in all_checks() if each.id in wanted} if wanted else {}
