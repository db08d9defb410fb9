"""Plans check instances, runs them, and reports what came out."""

from __future__ import annotations

import platform
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, get_args

from attnkit.errors import ArgumentError, RegistryError
from attnkit.promises import ALL_DTYPES, Device
from attnkit.registry import registry
from attnkit_contracts.catalogue import TIERS, Check, Tier, all_checks, version
from attnkit_contracts.definitions.answers import Answers
from attnkit_contracts.diagnosis.explanation import NAMED
from attnkit_contracts.foreign.layers import is_foreign
from attnkit_contracts.reports.expectations import by_id, must_exist
from attnkit_contracts.reports.records import EXECUTED, Header, Record, Report
from attnkit_contracts.running.instance import Instance
from attnkit_contracts.running.proofs import of_extensions, prove
from attnkit_contracts.subjects.subject import Target, names_of, targets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from attnkit.interface import Variant
    from attnkit_contracts.reports.expectations import ExpectedFailure, Given

EXPLAINED = 12
"""How many failures of one subject are looked into that turn out to have no name."""


def plan(
    *variants: Variant | str,
    tier: Tier = "fast",
    dtypes: Iterable[str] | None = None,
    device: str = "cpu",
    implementations: Iterable[str] | None = None,
    seed: int = 0,
) -> tuple[Instance, ...]:
    """Return every check instance that applies, in a fixed order; arguments as of `check`."""
    if tier not in TIERS:
        raise ArgumentError(f"tier must be one of {', '.join(TIERS)}, got {tier!r}")
    if device.partition(":")[0] not in get_args(Device):
        raise ArgumentError(f"device must be one of {', '.join(get_args(Device))}, got {device!r}")
    tiers = TIERS[: TIERS.index(tier) + 1]
    checks = [each for each in all_checks() if each.tier in tiers]
    found = _resolved(variants)
    some = None if dtypes is None else _known("dtypes", dtypes, ALL_DTYPES)
    offered = [name for variant in found for name in names_of(variant)]
    named = None if implementations is None else _known("implementations", implementations, offered)
    answers = Answers()
    return tuple(
        Instance(target, each, params)
        for variant in found
        for target in targets(
            variant,
            dtypes=some,
            device=device,
            implementations=named,
            seed=seed,
            answers=answers,
        )
        for each in checks
        if applies(each, target)
        for params in each.cases(target.promises)
    )


def _known(what: str, given: Iterable[str], offered: Iterable[str]) -> tuple[str, ...]:
    """Return the names that are asked for, all of which must exist."""
    names, offered = tuple(given), tuple(dict.fromkeys(offered))
    for name in names:
        if name not in offered:
            few = ", ".join(offered[:12]) + (" ..." if len(offered) > 12 else "")
            raise ArgumentError(f"{what} must be of {few or 'none'}, got {name!r}")
    return names


def applies(check: Check, target: Target) -> bool:
    """Return whether a check is about this subject."""
    return (
        target.variant.family in check.families
        and target.level in check.levels
        and target.variant.relation in check.relations
        and target.dtype in check.dtypes
        and set(check.fields) <= set(target.variant.config.model_fields)
        and not (check.plugins_only and is_foreign(target.variant))
        and check.applies(target.promises)
    )


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
        progress: Called with every record.
        expected_failures: `ExpectedFailure` values, or reasons by instance id. A failure
            becomes ``xfail``; one that passes becomes ``xpass``, which is red: take it off.

    Raises:
        UnknownVariantError: No variant has such a name.
        ArgumentError: Another argument has a value that is not known, ids among them; or an
            expected failure has expired.
    """
    asked = _resolved(variants)
    instances = plan(
        *asked,
        tier=tier,
        dtypes=dtypes,
        device=device,
        implementations=implementations,
        seed=seed,
    )
    expected = by_id(expected_failures)
    must_exist(expected, instances)
    records: list[Record] = []
    explained: list[Record] = []
    with _known_by_name(asked):
        for instance in instances:
            record = _run(instance, explained) if explain else instance.run(explain=False)
            record = _expected(record, expected)
            records.append(record)
            if record.diagnosis:
                explained.append(record)
            if progress is not None:
                progress(record)
    return report_of(
        instances,
        tuple(records),
        asked=tuple(variant.name for variant in asked) + (() if variants else _broken()),
        tier=tier,
        device=device,
        seed=seed,
    )


@contextmanager
def _known_by_name(variants: tuple[Variant, ...]) -> Iterator[None]:
    """Register what is no plugin's for a while: copies and compiled graphs look variants up."""
    known = registry.default()
    with ExitStack() as stack:
        for variant in variants:
            if variant.name not in known.names():
                stack.enter_context(known.register(variant))
        yield


def _run(instance: Instance, before: list[Record]) -> Record:
    """Run an instance; of a failure, look for what explained those before it."""
    known = [each.diagnosis for each in before if each.id.startswith(f"{instance.target}/")]
    unnamed = sum(not each.startswith(NAMED) for each in known)
    hint = next((each for each in reversed(known) if each.startswith(NAMED)), "")
    record = instance.run(explain=unnamed < EXPLAINED, hint=hint)
    if record.diagnosis or not record.reason or record.status not in ("failed", "error"):
        return record
    told = f"not looked into: {EXPLAINED} before it had no name; run this instance alone"
    return record.model_copy(update={"diagnosis": told})


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
    # a named implementation may refuse what promises cannot say; then the choice must not
    missing = [
        each.id
        for each in instances
        if each.check.required
        and not each.check.is_advisory
        and each.target.implementation in ("auto", "layer")
        and each.id not in executed
    ]
    # one that refuses every call keeps every rule about refusals: those do not count alone
    tested = {str(each.target) for each in instances if each.check.required}
    reached = {
        str(each.target)
        for each in instances
        if each.id in executed and (each.check.required or str(each.target) not in tested)
    }
    missing += [
        name
        for name in dict.fromkeys(str(each.target) for each in instances)
        if name not in reached
    ]
    planned = {each.target.variant.name for each in instances}
    missing += [name for name in asked if name not in planned]
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


def _resolved(variants: tuple[Variant | str, ...]) -> tuple[Variant, ...]:
    """Return the variants asked for; without any, all that load."""
    known = registry.default()
    if variants:
        return tuple(known.get(each) if isinstance(each, str) else each for each in variants)
    broken = _broken()
    return tuple(known.get(name) for name in known.names() if name not in broken)


def _broken() -> tuple[str, ...]:
    """Return the installed names that do not resolve to a variant."""
    known, broken = registry.default(), []
    for name in known.names():
        try:
            known.get(name)
        except RegistryError:
            broken.append(name)
    return tuple(broken)
