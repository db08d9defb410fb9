"""Records and reports made by hand, for the tests of what is done with them."""

from __future__ import annotations

from typing import Any

from attnkit_contracts.catalogue import version
from attnkit_contracts.reports.records import EXECUTED, Header, Record, Report


def record(name: str = "acme/fast/float32/cpu/A4.row_sums", **given: Any) -> Record:
    """Return a record by its id, passed if nothing else is said."""
    variant, implementation, dtype, device, check = name.split("/", 4)
    told: dict[str, Any] = dict(
        id=name,
        check=check.partition("[")[0],
        params={},
        variant=variant,
        owner="attnkit-acme",
        version="1.0",
        implementation=implementation,
        dtype=dtype,
        device=device,
        status="passed",
        verdict="R",
        duration_ms=1.5,
    )
    if given.get("status", "passed") != "passed":
        told |= dict(reason="5 of 2 allowed", reproduction=f"rerun({name!r})")
    return Record(**{**told, **given})


def report(*records: Record, missing: tuple[str, ...] = (), **given: Any) -> Report:
    """Return the report of some records."""
    header = Header(
        attnkit=version(),
        torch="2.13.0",
        python="3.11.7",
        platform="Linux",
        device="cpu",
        threads=1,
        seed=0,
        tier="fast",
        variants=tuple(dict.fromkeys(each.variant for each in records)),
        expected_count=len(records),
        executed_count=sum(each.status in EXECUTED for each in records),
        required_missing=missing,
    )
    return Report(header=header, records=records, **given)
