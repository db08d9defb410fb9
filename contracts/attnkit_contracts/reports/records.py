"""What a run leaves behind: one record per check instance, and the report that holds them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict, Field, field_validator

from attnkit.errors import ArgumentError, AttnkitError
from attnkit.frozen import Frozen
from attnkit.interface import load
from attnkit_contracts.reports.diagnosis import NOTHING, Diagnosis
from attnkit_contracts.reports.expectations import ExpectedFailure

if TYPE_CHECKING:
    from pathlib import Path

Status = Literal[
    "passed", "failed", "unsupported", "skipped_env", "inconclusive", "error", "xfail", "xpass"
]

EXECUTED: tuple[Status, ...] = ("passed", "failed", "xfail", "xpass")
"""The statuses of checks that came to a verdict."""

RED: tuple[Status, ...] = ("failed", "error", "inconclusive", "xpass")
"""The statuses with which a run has not passed."""


class CheckFailedError(AttnkitError, AssertionError):
    """A record that should be green is red; the message says which and why."""


class RuleBrokenError(CheckFailedError):
    """A rule does not hold, as against a check that raised or could not tell."""


class Record(Frozen):
    """The outcome of one check on one subject with one set of parameters."""

    # JSON has no infinity; null would read as "nothing was measured"
    model_config = ConfigDict(ser_json_inf_nan="strings")

    id: str = Field(description="unique: variant/implementation/dtype/device/check[params]")
    check: str = Field(description="id of the check")
    params: dict[str, str | int | float | bool] = Field(description="its parameters")
    variant: str
    owner: str = Field(description="distribution that offers the variant")
    version: str = Field(description="of that distribution; empty for this session")
    implementation: str = Field(description="its name; 'auto' for the choice, 'layer' for a layer")
    dtype: str
    device: str
    status: Status
    verdict: Literal["E", "R", "S"] = Field(description="exact, in an error unit, statistical")
    value: float | None = Field(default=None, description="the worst seen, in `unit`")
    threshold: float | None = Field(
        default=None, description="the largest value that passes, in `unit`"
    )
    unit: str = ""
    duration_ms: float = Field(description="milliseconds")
    reason: str = Field(default="", description="what was expected and what came, if not passed")
    diagnosis: Diagnosis = Field(
        default=NOTHING,
        description="the named mistake that explains a failure, or that none does",
    )
    smallest: str = Field(default="", description="the smallest call that was found to fail")
    elements: str = Field(default="", description="some wrong elements of it, expected and got")
    reproduction: str = Field(
        default="", description="Python that shows the failure, or runs this instance alone"
    )
    expected: ExpectedFailure | None = Field(default=None, description="of an xfail or xpass")
    advisory: bool = Field(default=False, description="the check is new, so its failure is not red")

    @field_validator("diagnosis", mode="before")
    @classmethod
    def _of_text(cls, given: object) -> object:
        """Read the text that reports of attnkit 0.1 hold."""
        return Diagnosis(seen=given) if isinstance(given, str) else given

    @property
    def subject(self) -> str:
        """Variant and implementation, as tables name a row."""
        return f"{self.variant} / {self.implementation}"

    @property
    def told(self) -> str:
        """What is wrong, what was seen, the smallest call and its wrong elements, a line each."""
        smallest = self.smallest and f"smallest call that fails: {self.smallest}"
        told = (str(self.diagnosis), self.reason, smallest, self.elements)
        return "\n".join(dict.fromkeys(filter(None, told)))

    @property
    def is_red(self) -> bool:
        """Whether a run with this record has not passed."""
        return self.status in RED and not self.advisory

    def raise_for_status(self) -> None:
        """Raise `CheckFailedError` if this record is red, `RuleBrokenError` if it failed."""
        if self.is_red:
            kind = RuleBrokenError if self.status == "failed" else CheckFailedError
            raise kind(f"{self.id}: {self.status}: {self.told}\n\n{self.reproduction}")


class Proof(Frozen):
    """Whether a check that an extension brings catches a wrong variant that it brings."""

    check: str = Field(description="id of the check")
    wrong: str = Field(description="name of the wrong variant")
    caught_by: str = Field(description="id of the first instance that failed; empty for none")


UNCOMPARED = "their family names no suite, see attnkit.families.Family"

UNJUDGED = "nobody judged its mathematics: it brings no layer_definition, see attnkit.Variant"
"""What is said of a layer that was compared with itself alone."""

DEFINED = ("N1.layer", "N1.mixture")
"""The checks that compare a layer with a definition."""


class Header(Frozen):
    """Where, with what and how completely a report was made."""

    attnkit: str = Field(description="version")
    torch: str = Field(description="version")
    python: str = Field(description="version")
    platform: str
    device: str
    threads: int = Field(description="torch's intra-op threads while checks ran")
    seed: int
    tier: str
    variants: tuple[str, ...] = Field(description="asked for")
    expected_count: int = Field(description="check instances that apply to what was asked for")
    executed_count: int = Field(description="those that came to a verdict")
    required_missing: tuple[str, ...] = Field(
        description="ids of required instances without a verdict, and subjects without any"
    )
    uncompared: tuple[str, ...] = Field(
        default=(),
        description="variants whose implementations nothing compared: their family says no suite",
    )
    unjudged: tuple[str, ...] = Field(
        default=(),
        description="variants whose layer was compared with no definition, as they bring none",
    )
    broken_extensions: tuple[str, ...] = Field(
        default=(), description="extensions that failed, whose checks may be missing"
    )


class Report(Frozen):
    """All records of one run, in the order of the plan."""

    header: Header
    records: tuple[Record, ...]
    proofs: tuple[Proof, ...] = Field(default=(), description="of the checks of extensions")
    unproven: tuple[str, ...] = Field(
        default=(), description="ids of checks of extensions that bring no wrong variant"
    )
    sections: tuple[str, ...] = Field(default=(), description="Markdown that extensions add")

    @property
    def passed(self) -> bool:
        """True if something ran, nothing is red, no wrong variant survived, nothing is missing."""
        return (
            self.header.executed_count > 0
            and not self.header.required_missing
            and not self.failures()
            and all(proof.caught_by for proof in self.proofs)
        )

    def failures(self) -> tuple[Record, ...]:
        """Return the red records."""
        return tuple(record for record in self.records if record.is_red)

    def advice(self) -> tuple[Record, ...]:
        """Return the records that would be red if their check were not new."""
        return tuple(record for record in self.records if record.status in RED and record.advisory)

    def counts(self) -> dict[Status, int]:
        """Return how many records have each status that occurs."""
        return dict(Counter(record.status for record in self.records))

    def to_json(self) -> str:
        """Return the report as JSON; `from_json` reads it back."""
        return self.model_dump_json(indent=2)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Read what `to_json` wrote."""
        return cls.model_validate_json(text)

    def to_markdown(self) -> str:
        """Return the report as Markdown; see `attnkit_contracts.reports.markdown`."""
        return str(load("attnkit_contracts.reports.markdown:to_markdown")(self))

    def to_junit(self) -> str:
        """Return the report as JUnit XML; see `attnkit_contracts.reports.junit`."""
        return str(load("attnkit_contracts.reports.junit:to_junit")(self))

    def to_html(self) -> str:
        """Return the report as one page that needs no other file; see `reports.html`."""
        return str(load("attnkit_contracts.reports.html:to_html")(self))

    def write(self, path: Path) -> None:
        """Write the report to a file, in the format of its suffix: .json, .md, .xml or .html."""
        if path.suffix not in FORMATS:
            raise ArgumentError(f"a report must end in {', '.join(FORMATS)}, got {path}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(FORMATS[path.suffix](self), encoding="utf-8")


FORMATS = {
    ".json": Report.to_json,
    ".md": Report.to_markdown,
    ".xml": Report.to_junit,
    ".html": Report.to_html,
}
"""How a report is written, by the suffix of its file."""
