"""What changed between two reports: ``attnkit diff old.json new.json``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict, Field

from attnkit.frozen import Frozen
from attnkit_contracts.reports.records import RED

if TYPE_CHECKING:
    from attnkit_contracts.reports.records import Record, Report

Kind = Literal["broken", "fixed", "gone", "appeared", "changed", "drifted"]

WORSE: tuple[Kind, ...] = ("broken", "gone")
"""What makes a new report worse than the old one."""

DRIFT = 2.0
"""How many times larger or smaller an error must be to be told: rounding differs by machine."""


class Change(Frozen):
    """One instance that is not what it was."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    id: str
    kind: Kind = Field(
        description="broken: red and was not; fixed: the reverse; gone: has no verdict any more; "
        "appeared: is new; changed: another status, neither better nor worse; drifted: the "
        "same verdict with another error"
    )
    before: str = Field(default="", description="status; empty for what was not there")
    after: str = Field(default="", description="status; empty for what is not there any more")
    value_before: float | None = Field(default=None, description="in the unit of the check")
    value_after: float | None = Field(default=None, description="in the unit of the check")
    threshold: float | None = Field(default=None, description="the largest value that passes")
    reason: str = Field(default="", description="of the new record")

    @property
    def is_worse(self) -> bool:
        """Whether something that was known to hold no longer is."""
        return self.kind in WORSE and self.before not in RED

    def line(self) -> str:
        """Say it in one line."""
        if self.kind == "drifted":
            return f"{self.id}: {self.value_before:.3g} -> {self.value_after:.3g}"
        states = " -> ".join((self.before or "not there", self.after or "not there"))
        return f"{self.id}: {states}" + (f": {self.reason}" if self.reason else "")


class Difference(Frozen):
    """All changes between two reports, worst kind first, each kind in the order of the reports."""

    changes: tuple[Change, ...]
    environment: dict[str, tuple[str, str]] = Field(
        description="what of the header differs, old and new"
    )

    @property
    def is_worse(self) -> bool:
        """Whether any change is for the worse."""
        return any(change.is_worse for change in self.changes)

    def of(self, kind: Kind) -> tuple[Change, ...]:
        """Return the changes of one kind."""
        return tuple(change for change in self.changes if change.kind == kind)


ORDER: tuple[Kind, ...] = ("broken", "gone", "changed", "drifted", "appeared", "fixed")


def compare(old: Report, new: Report) -> Difference:
    """Return what changed from one report to another."""
    before = {record.id: record for record in old.records}
    after = {record.id: record for record in new.records}
    found = [_change(each, before.get(each), after.get(each)) for each in {**before, **after}]
    told = sorted((each for each in found if each), key=lambda each: ORDER.index(each.kind))
    missing = set(new.header.required_missing) - set(old.header.required_missing) - set(after)
    lost = [
        Change(id=name, kind="gone", reason="required, and without a verdict")
        for name in new.header.required_missing
        if name in missing
    ]
    return Difference(changes=(*told, *lost), environment=_environment(old, new))


def _change(name: str, old: Record | None, new: Record | None) -> Change | None:
    if new is None:
        assert old is not None
        return Change(id=name, kind="gone", before=old.status)
    kind = _kind(old, new)
    if kind is None:
        return None
    return Change(
        id=name,
        kind=kind,
        before=old.status if old else "",
        after=new.status,
        value_before=old.value if old else None,
        value_after=new.value,
        threshold=new.threshold,
        reason=new.reason,
    )


def _kind(old: Record | None, new: Record) -> Kind | None:
    """Return how a record that is there changed; None where it did not."""
    if old is None:
        return "broken" if new.is_red else "appeared"
    if new.is_red and not old.is_red:
        return "broken"
    if new.status != old.status:
        return _UNLIKE.get((old.status, new.status), "changed")
    return "drifted" if _drifted(old, new) else None


_UNLIKE: dict[tuple[str, str], Kind] = {
    # a failure that is now expected is still one that was not there
    ("passed", "xfail"): "broken",
    # nobody knows any more whether it holds
    ("passed", "unsupported"): "gone",
    ("passed", "skipped_env"): "gone",
    **{(status, "passed"): "fixed" for status in (*RED, "xfail", "unsupported", "skipped_env")},
}


def _drifted(old: Record, new: Record) -> bool:
    """Return whether an error that had room within its threshold is another now."""
    if old.value is None or new.value is None or not old.threshold:
        return False
    small, large = sorted((abs(old.value), abs(new.value)))
    # far below the threshold nothing follows from a factor of two
    return large > DRIFT * small and large > 0.1 * old.threshold


def _environment(old: Report, new: Report) -> dict[str, tuple[str, str]]:
    names = ("attnkit", "torch", "python", "platform", "device", "threads", "seed", "tier")
    pairs = {name: (getattr(old.header, name), getattr(new.header, name)) for name in names}
    return {name: (str(a), str(b)) for name, (a, b) in pairs.items() if a != b}
