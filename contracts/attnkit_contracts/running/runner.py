"""Runs what is planned, and reports what came out."""

from __future__ import annotations

import platform
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from attnkit.errors import ArgumentError
from attnkit.registry import registry
from attnkit_contracts.catalogue import version
from attnkit_contracts.reports.expectations import by_id
from attnkit_contracts.reports.records import DEFINED, EXECUTED, Header, Record, Report
from attnkit_contracts.running.execution import run_in
from attnkit_contracts.running.plan import broken_names, must_exist, plan, resolved
from attnkit_contracts.running.proofs import of_extensions, prove
from attnkit_contracts.subjects.families import uncompared

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from attnkit.interface import Variant
    from attnkit_contracts.catalogue import Tier
    from attnkit_contracts.reports.expectations import ExpectedFailure, Given
    from attnkit_contracts.running.instance import Instance


REFUSING = {"S10.masks", "S10.decays"}
"""What is required and is, in part, about refusals: whoever refuses every call passes that."""


def check(
    *variants: Variant | str,
    tier: Tier = "fast",
    dtypes: Iterable[str] | None = None,
    device: str = "cpu",
    implementations: Iterable[str] | None = None,
    seed: int = 0,
    explain: bool = True,
    progress: Callable[[Record], None] | None = None,
    expected_failures: Given | None = None,
    jobs: int = 1,
) -> Report:
    """Check variants: every promise they make, and the refusal of every one they do not.

    Args:
        variants: Variants or names; none for all that are installed.
        tier: ``fast``, ``standard`` or ``full``; each contains those before it.
        dtypes: Only these, by name; None for all that are promised.
        device: Device of the inputs; implementations that do not promise it are left out.
        implementations: Only these, ``auto`` and ``layer`` among them; None for all.
        seed: Of all random numbers.
        explain: Look into failures: which named mistake, which smallest call. Of one subject,
            until `EXPLAINED` have no name.
        progress: Called with every record, in the order in which they come.
        expected_failures: `ExpectedFailure` values, or reasons by instance id. A failure
            becomes ``xfail``; one that passes becomes ``xpass``, which is red: take it off.
        jobs: How many processes run it; the report is the same. The others import what is
            installed: a script that asks for more than one keeps its own calls below
            ``if __name__ == "__main__"``.

    Raises:
        UnknownVariantError: No variant has such a name.
        ArgumentError: Another argument has a value that is not known, ids among them; an
            expected failure has expired; or the device is not here.
    """
    asked = resolved(variants)
    planning = partial(plan, tier=tier, device=device, seed=seed)
    instances = planning(*asked, dtypes=dtypes, implementations=implementations)
    _must_be_here(device)
    expected = by_id(expected_failures)
    must_exist(expected, instances)
    found: dict[str, Record] = {}
    with _known_by_name(asked):
        for record in run_in(jobs, instances, planning, explain=explain):
            found[record.id] = _expected(record, expected)
            if progress is not None:
                progress(found[record.id])
    return report_of(
        instances,
        tuple(found[each.id] for each in instances),
        asked=tuple(variant.name for variant in asked) + (() if variants else broken_names()),
        tier=tier,
        device=device,
        seed=seed,
    )


def _must_be_here(device: str) -> None:
    """Refuse a GPU that torch does not find."""
    import torch

    kind, _, number = device.partition(":")
    there = torch.cuda.device_count()
    if kind == "cuda" and int(number or 0) >= there:
        raise ArgumentError(f"device {device!r} is not here: torch finds {there} GPUs")


@contextmanager
def _known_by_name(variants: tuple[Variant, ...]) -> Iterator[None]:
    """Register what is no plugin's for a while: copies and compiled graphs look variants up."""
    known = registry.default()
    with ExitStack() as stack:
        for variant in variants:
            if variant.name not in known.names():
                stack.enter_context(known.register(variant))
        yield


def _expected(record: Record, expected: Mapping[str, ExpectedFailure]) -> Record:
    """Return the record as it is if it was not expected to fail."""
    why = expected.get(record.id)
    if why is None or record.status not in ("passed", "failed"):
        return record
    if record.status == "failed":
        change = {"status": "xfail", "reason": f"{why}: {record.reason}"}
    else:
        reason = f"expected to fail ({why}), and passed; take it off the expected failures"
        change = {"status": "xpass", "reason": reason}
    return record.model_copy(update={**change, "expected": why})


def report_of(
    instances: tuple[Instance, ...],
    records: tuple[Record, ...],
    *,
    asked: tuple[str, ...],
    tier: Tier,
    device: str,
    seed: int,
) -> Report:
    """Return the report of a run of planned instances."""
    import torch

    executed = {record.id for record in records if record.status in EXECUTED}
    # one that refuses every call keeps every rule about refusals: those do not count alone
    tells = {each.check.id for each in instances if each.check.required} - REFUSING
    tested = {str(each.target) for each in instances if each.check.id in tells}
    reached = {
        str(each.target)
        for each in instances
        if each.id in executed and (each.check.id in tells or str(each.target) not in tested)
    }
    missing = [
        each.id
        for each in instances
        if _must_run(each) and each.id not in executed and str(each.target) in reached
    ]
    missing += [
        name
        for name in dict.fromkeys(str(each.target) for each in instances)
        if name not in reached
    ]
    variants = {each.target.variant.name: each.target.variant for each in instances}
    missing += [name for name in asked if name not in variants]
    further = of_extensions({each.check.id: each.check for each in instances}.values())
    known = registry.default()
    report = Report(
        header=Header(
            attnkit=version(),
            torch=torch.__version__,
            python=platform.python_version(),
            platform=platform.platform(),
            device=device,
            threads=1,
            seed=seed,
            tier=tier,
            variants=asked,
            expected_count=len(instances),
            executed_count=len(executed),
            required_missing=tuple(missing),
            uncompared=tuple(name for name, each in variants.items() if uncompared(each)),
            unjudged=_unjudged(records),
        ),
        records=records,
        proofs=tuple(proof for each in further for proof in prove(each, seed)),
        unproven=tuple(each.id for each in further if not tuple(each.catches())),
    )
    sections = known.report_sections(report)
    # asked last: what fails at the section itself is among them
    broken = tuple(str(fault) for fault in known.broken_extensions())
    header = report.header.model_copy(update={"broken_extensions": broken})
    return report.model_copy(update={"header": header, "sections": sections})


def _unjudged(records: tuple[Record, ...]) -> tuple[str, ...]:
    """Return the variants whose layer ran, and was compared with no definition."""
    asked = [each for each in records if each.check in DEFINED]
    judged = {each.variant for each in asked if each.status != "unsupported"}
    layers = (each.variant for each in records if each.implementation == "layer")
    return tuple(name for name in dict.fromkeys(layers) if name not in judged)


def _must_run(instance: Instance) -> bool:
    """Return whether a report without its verdict is not green: what is promised must be seen.

    A named implementation may refuse what promises cannot say, several of them together.
    """
    chosen = instance.target.implementation in ("auto", "layer")
    together = any("+" in str(value) for value in instance.params.values())
    check = instance.check
    return check.required and not check.is_advisory and (chosen or not together)


def rerun(id: str, *, seed: int = 0) -> Record:
    """Run one instance again, by the id of its record.

    Raises:
        ArgumentError: Nothing of this id is planned.
    """
    name, _, rest = id.partition("/")
    parts = rest.split("/")
    device = parts[2] if len(parts) > 2 else "cpu"
    for instance in plan(name, tier="full", device=device, seed=seed):
        if instance.id == id:
            return instance.run()
    raise ArgumentError(
        f"no check instance {id!r}; ids are variant/implementation/dtype/device/check[params]"
    )
