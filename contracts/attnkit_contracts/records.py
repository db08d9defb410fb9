"""What a run leaves behind: one record per check instance, and the report that holds them."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from attnkit.errors import AttnkitError

Status = Literal[
    "passed", "failed", "unsupported", "skipped_env", "inconclusive", "error", "xfail", "xpass"
]

EXECUTED: tuple[Status, ...] = ("passed", "failed", "xfail", "xpass")
"""The statuses of checks that came to a verdict."""

RED: tuple[Status, ...] = ("failed", "error", "inconclusive", "xpass")
"""The statuses with which a run has not passed."""


class CheckFailedError(AttnkitError, AssertionError):
    """A record that should be green is red; the message says which and why."""


class Record(BaseModel):
    """The outcome of one check on one subject with one set of parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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
    reproduction: str = Field(default="", description="Python that runs this instance alone")

    def raise_for_status(self) -> None:
        """Raise `CheckFailedError` if this record is red."""
        if self.status in RED:
            raise CheckFailedError(
                f"{self.id}: {self.status}: {self.reason}\n\n{self.reproduction}"
            )


class Header(BaseModel):
    """Where, with what and how completely a report was made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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


class Report(BaseModel):
    """All records of one run, in the order of the plan."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    header: Header
    records: tuple[Record, ...]

    @property
    def passed(self) -> bool:
        """True if something ran, nothing is red and nothing required is missing."""
        return (
            self.header.executed_count > 0
            and not self.header.required_missing
            and not self.failures()
        )

    def failures(self) -> tuple[Record, ...]:
        """Return the red records."""
        return tuple(record for record in self.records if record.status in RED)

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
        """Return the report as Markdown; see `attnkit_contracts.markdown`."""
        from attnkit_contracts.markdown import to_markdown

        return to_markdown(self)
