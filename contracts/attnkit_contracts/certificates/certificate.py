"""A certificate: what one variant promised, what was run to test it, and on which files.

    attnkit check acme_window --certificate acme_window.json
    attnkit badge acme_window.json > acme_window.svg

There is a certificate only of a whole run: every check of the tier, on everything that the
variant promises on the device, with nothing required missing and nothing red.
"""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

from pydantic import Field

from attnkit.errors import AttnkitError
from attnkit.frozen import Frozen
from attnkit.promises import Promises
from attnkit.registry import registry
from attnkit.registry.discovery import SESSION
from attnkit_contracts.catalogue import release, version
from attnkit_contracts.certificates import evidence
from attnkit_contracts.reports.expectations import ExpectedFailure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from attnkit.interface import Variant
    from attnkit_contracts.reports.records import Report

FEW = 12
"""How many ids a refusal lists."""


class CertificateRefusedError(AttnkitError, ValueError):
    """A report does not show what a certificate says; the message lists what is missing."""


class Measurement(Frozen):
    """The largest error that one check saw on one subject."""

    id: str = Field(description="of the instance that saw it")
    value: float
    threshold: float = Field(description="the largest value that passes")
    unit: str


class Certificate(Frozen):
    """What was promised, executed and measured, with which versions of which files."""

    variant: str
    owner: str = Field(description="distribution that offers the variant")
    version: str = Field(description="of that distribution")
    made: datetime.datetime
    attnkit: str = Field(description="version, and so that of the suite")
    suite: str = Field(description="sha256 over the files of the suite")
    torch: str
    python: str
    platform: str
    device: str = Field(description="the only one that this certificate is about")
    not_covered: tuple[str, ...] = Field(description="promised devices that it is not about")
    tier: str
    seed: int
    promises: Promises = Field(description="of the variant")
    implementations: dict[str, Promises] = Field(description="promises of each of them, by name")
    expected_count: int
    executed_count: int
    counts: dict[str, int] = Field(description="instances by status")
    checks: tuple[str, ...] = Field(description="ids of the checks that ran")
    known_failures: tuple[ExpectedFailure, ...]
    advice: tuple[str, ...] = Field(description="ids of new checks that fail and are not yet red")
    refusals: tuple[str, ...] = Field(description="ids of what an implementation refused")
    layer_judged: bool = Field(
        default=False,
        description="whether the mathematics of its layer was compared with a definition of it",
    )
    measurements: tuple[Measurement, ...] = Field(description="by check, the largest share first")
    files: dict[str, str] = Field(description="sha256 of each file of the plugin")

    def to_json(self) -> str:
        """Return the certificate as JSON; `from_json` reads it back."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Certificate:
        """Read what `to_json` wrote."""
        return cls.model_validate_json(text)

    def outdated(self) -> str:
        """Return why this certificate says nothing about what is installed; empty if it does."""
        if release(version())[0] != release(self.attnkit)[0]:
            return f"it was made by the suite of attnkit {self.attnkit}, this is {version()}"
        known = registry.default()
        if self.variant not in known.names():
            return ""
        files = evidence.files(known.get(self.variant))
        changed = [
            name
            for name in sorted({*files, *self.files})
            if files.get(name) != self.files.get(name)
        ]
        return f"files changed since it was made: {', '.join(changed)}" if changed else ""


def certify(variant: Variant, report: Report) -> Certificate:
    """Return the certificate of a variant from a report on it.

    Raises:
        CertificateRefusedError: The report does not show all that a certificate must; says what.
    """
    reasons = list(_objections(variant, report))
    if reasons:
        told = "".join(f"\n  {reason}" for reason in reasons)
        raise CertificateRefusedError(f"no certificate for {variant.name!r}:{told}")
    records = [each for each in report.records if each.variant == variant.name]
    header = report.header
    counts = report.model_copy(update={"records": tuple(records)}).counts()
    offered = registry.default().implementations(variant.name)
    (entry,) = registry.default().entries(variant.name)
    return Certificate(
        variant=variant.name,
        owner=entry.owner,
        version=entry.version,
        made=datetime.datetime.now(tz=datetime.UTC).replace(microsecond=0),
        attnkit=header.attnkit,
        suite=evidence.suite(),
        torch=header.torch,
        python=header.python,
        platform=header.platform,
        device=header.device,
        not_covered=tuple(each for each in variant.promises.devices if each != header.device),
        tier=header.tier,
        seed=header.seed,
        promises=variant.promises,
        implementations={each.name: each.promises for each in offered},
        expected_count=len(records),
        executed_count=sum(each.status in ("passed", "failed", "xfail") for each in records),
        counts={str(status): count for status, count in sorted(counts.items())},
        checks=tuple(sorted({each.check for each in records})),
        known_failures=tuple(each.expected for each in records if each.expected),
        advice=tuple(each.id for each in report.advice()),
        refusals=tuple(each.id for each in records if each.status == "unsupported"),
        layer_judged=variant.name not in header.unjudged,
        measurements=_measurements(report),
        files=evidence.files(variant),
    )


def _objections(variant: Variant, report: Report) -> Iterator[str]:
    """Yield every reason against a certificate, most basic first."""
    from attnkit_contracts.running.plan import plan

    header = report.header
    owners = [each.owner for each in registry.default().entries(variant.name)]
    if owners in ([], [SESSION]):
        yield "no installed distribution offers it; a certificate names one, and its files"
        return
    if header.variants != (variant.name,):
        yield f"the report is about {', '.join(header.variants)}; check this variant alone"
    if header.attnkit != version():
        yield f"the report was made by attnkit {header.attnkit}, this is {version()}"
    ran = {record.id for record in report.records}
    whole = plan(variant, tier=header.tier, device=header.device)  # type: ignore[arg-type]  # a tier
    yield from _list("not run", [each.id for each in whole if each.id not in ran])
    yield from _list("required, and without a verdict", header.required_missing)
    yield from _list("not passed", [f"{each.id}: {each.status}" for each in report.failures()])
    required = {each.id for each in whole if each.check.required}
    excused = [each.id for each in report.records if each.status == "xfail" and each.id in required]
    yield from _list("required, and expected to fail", excused)
    survivors = [f"{each.check} on {each.wrong}" for each in report.proofs if not each.caught_by]
    yield from _list("a wrong variant that its check does not catch", survivors)
    yield from _list("a variant whose implementations nothing compared", header.uncompared)
    yield from _list("an extension that failed, with its checks", header.broken_extensions)
    if not header.executed_count:
        yield "nothing was executed"


def _list(what: str, ids: list[str] | tuple[str, ...]) -> Iterator[str]:
    yield from (f"{what}: {each}" for each in ids[:FEW])
    if len(ids) > FEW:
        yield f"{what}: {len(ids) - FEW} more"


def _measurements(report: Report) -> tuple[Measurement, ...]:
    """Return the largest error of every check that measures one, nearest to its limit first."""
    worst: dict[str, Measurement] = {}
    for each in report.records:
        if each.value is None or not each.threshold:
            continue
        found = Measurement(id=each.id, value=each.value, threshold=each.threshold, unit=each.unit)
        if each.check not in worst or _share(found) > _share(worst[each.check]):
            worst[each.check] = found
    return tuple(sorted(worst.values(), key=_share, reverse=True))


def _share(measured: Measurement) -> float:
    return measured.value / measured.threshold
