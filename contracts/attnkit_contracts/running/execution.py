"""Runs planned instances: one after the other, or in several processes.

What a record says depends on nothing that ran before it but the failures of its own subject, and
on the definition's answers, which are the same whoever asks first. So a process takes all subjects
of a variant in one dtype, and the records are those of a run in one process.
"""

from __future__ import annotations

import multiprocessing
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from typing import TYPE_CHECKING

from attnkit.errors import ArgumentError
from attnkit_contracts.reports.diagnosis import Diagnosis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from attnkit_contracts.reports.records import Record
    from attnkit_contracts.running.instance import Instance

EXPLAINED = 12
"""How many failures of one subject are looked into that turn out to have no name."""


def run(instances: Iterable[Instance], *, explain: bool) -> Iterator[Record]:
    """Run instances in their order; of a failure, look for what explained its subject's others."""
    found: dict[str, list[Diagnosis]] = defaultdict(list)
    for instance in instances:
        before = found[str(instance.target)]
        record = _explained(instance, before) if explain else instance.run(explain=False)
        if record.diagnosis:
            before.append(record.diagnosis)
        yield record


def _explained(instance: Instance, before: Sequence[Diagnosis]) -> Record:
    """Run an instance, looking into a failure unless too many before it had no name."""
    unnamed = sum(not each.is_named for each in before)
    hint = next((each for each in reversed(before) if each.is_named), None)
    record = instance.run(explain=unnamed < EXPLAINED, hint=hint)
    if record.diagnosis or not record.reason or record.status not in ("failed", "error"):
        return record
    told = f"not looked into: {EXPLAINED} before it had no name; run this instance alone"
    return record.model_copy(update={"diagnosis": Diagnosis(seen=told, alike=True)})


def run_in(
    jobs: int,
    instances: Sequence[Instance],
    planning: Callable[..., tuple[Instance, ...]],
    *,
    explain: bool,
) -> Iterator[Record]:
    """Run instances in so many processes, in any order.

    Another process knows what is installed, and is told what to plan again by ``planning``. What it
    does not know, a variant of this session say, and what measures time, runs in this one, when
    the others have ended.

    Raises:
        ArgumentError: There are to be fewer processes than one.
    """
    if jobs < 1:
        raise ArgumentError(f"jobs must be at least 1, got {jobs}")
    parts: dict[tuple[str, str], list[Instance]] = defaultdict(list)
    for each in instances:
        if each.is_installed and not each.check.measures_time:
            parts[each.target.variant.name, each.target.dtype].append(each)
    if jobs == 1 or len(parts) < 2:
        yield from run(instances, explain=explain)
        return
    waiting = {each.id: each for each in instances}
    pool = ProcessPoolExecutor(min(jobs, len(parts)), multiprocessing.get_context("spawn"))
    try:
        # the largest first: whoever is done early takes a small one
        running = []
        for (name, dtype), part in sorted(parts.items(), key=lambda part: -len(part[1])):
            some = tuple(dict.fromkeys(each.target.implementation for each in part))
            planned = partial(planning, name, dtypes=(dtype,), implementations=some)
            running.append(pool.submit(_run_part, planned, explain))
        for done in as_completed(running):
            for record in done.result():
                if waiting.pop(record.id, None) is not None:
                    yield record
    finally:
        pool.shutdown(cancel_futures=True)
    yield from run(waiting.values(), explain=explain)


def _run_part(planned: Callable[[], tuple[Instance, ...]], explain: bool) -> tuple[Record, ...]:
    """Plan a part again, in a process of its own, and run it."""
    return tuple(run([each for each in planned() if not each.check.measures_time], explain=explain))
