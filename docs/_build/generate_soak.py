"""Run the suite under many seeds, and write the page that says what changed: nothing should.

    pip install fla-core x-transformers einops einx loguru torch-einops-utils triton
    python docs/_build/generate_soak.py --seeds 50 --keep build/soak

writes ``docs/records/soak.md``. Every run is a process of its own: all built-in variants and, under
the first twenty seeds, the functions of `foreign_functions`. Several runs go on at a time, so that
each loads the core beside the other's. What a run found is kept in a file, and a run that is there
is not made again, so that a soak can be interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import warnings
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from foreign_functions import FOREIGN
from generate_findings import note_of

import attnkit_contracts
from attnkit_contracts.foreign.functions import FUNCTION

if TYPE_CHECKING:
    from collections.abc import Iterable

    from attnkit_contracts import Record
    from attnkit_contracts.running.instance import Instance

PAGE = Path(__file__).parents[1] / "records" / "soak.md"
FOREIGN_SEEDS = 20

Run = dict[str, Any]


def main() -> int:
    """Make the runs that are missing, write the page, and say whether it is clean."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--keep", type=Path, default=Path("build/soak"), help="a file per run")
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--one", type=int, help="make this run alone, and write no page")
    given = parser.parse_args()
    given.keep.mkdir(parents=True, exist_ok=True)
    if given.one is not None:
        _place(given.keep, given.one).write_text(json.dumps(run(given.one)))
        return 0
    missing = [seed for seed in range(given.seeds) if not _place(given.keep, seed).exists()]
    with ThreadPoolExecutor(given.at_once) as pool:
        list(pool.map(lambda seed: _apart(given.keep, seed), missing))
    runs = [json.loads(_place(given.keep, seed).read_text()) for seed in range(given.seeds)]
    PAGE.parent.mkdir(exist_ok=True)
    text, clean = page(runs)
    PAGE.write_text(text)
    return 0 if clean else 1


def _place(keep: Path, seed: int) -> Path:
    return keep / f"{seed:03}.json"


def _apart(keep: Path, seed: int) -> None:
    """Make one run in a process of its own, on one thread."""
    command = [sys.executable, __file__, "--one", str(seed), "--keep", str(keep)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    sys.stderr.write(f"seed {seed} done\n")


def run(seed: int) -> Run:
    """Return what one run found: the status of every instance, and the reasons of the red ones."""
    warnings.simplefilter("ignore")
    begun = time.monotonic()
    records = list(attnkit_contracts.check(seed=seed, explain=False).records)
    foreign: list[Record] = []
    if seed < FOREIGN_SEEDS:
        for each in FOREIGN:
            plan = attnkit_contracts.plan(each.variant(), implementations=[FUNCTION], seed=seed)
            foreign += map(_record, plan)
    return {
        "seed": seed,
        "attnkit": _revision(),
        "seconds": time.monotonic() - begun,
        "load": os.getloadavg()[0],
        "built_in": {record.id: record.status for record in records},
        "foreign": {record.id: record.status for record in foreign},
        "reasons": {record.id: record.reason for record in records if record.is_red},
        "notes": {record.id: _noted(record) for record in foreign if record.is_red},
        "milliseconds": _milliseconds(records),
    }


def _record(instance: Instance) -> Record:
    """Run an instance; look into a failure only where no note accounts for it as it is."""
    record = instance.run(explain=False)
    return instance.run() if record.is_red and note_of(record) is None else record


def _noted(record: Record) -> str:
    note = note_of(record)
    return note.title if note else ""


def _milliseconds(records: Iterable[Record]) -> dict[str, float]:
    spent: dict[str, float] = defaultdict(float)
    for record in records:
        spent[f"{record.variant} {record.dtype}"] += record.duration_ms
    return spent


def _revision() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PAGE.parents[2])
    return told.stdout.strip()


def page(runs: list[Run]) -> tuple[str, bool]:
    """Return the page, and whether no status changed and nothing was red without a note."""
    built_in = _changed(each["built_in"] for each in runs)
    foreign = _changed(each["foreign"] for each in runs if each["foreign"])
    red = {name: reason for each in runs for name, reason in each["reasons"].items()}
    unnoted = {name for each in runs for name, note in each["notes"].items() if not note}
    first = runs[0]
    spent = {
        key: median(each["milliseconds"][key] for each in runs) for key in first["milliseconds"]
    }
    lines = [
        "# The suite under many seeds",
        "",
        f"`python docs/_build/generate_soak.py --seeds {len(runs)}`: torch {torch.__version__}, Python "
        f"{platform.python_version()}, {os.cpu_count()} cores, revisions "
        f"{', '.join(dict.fromkeys(each['attnkit'] for each in runs))}. Every run is a process of "
        f"its own on one thread, several at a time; load average "
        f"{min(each['load'] for each in runs):.1f} to {max(each['load'] for each in runs):.1f}.",
        "",
        "| what | runs | instances | red | status changed |",
        "| --- | --- | --- | --- | --- |",
        f"| built-in variants | {len(runs)} | {len(first['built_in'])} | {len(red)} | "
        f"{len(built_in)} |",
        f"| {len(FOREIGN)} functions by others | {sum(bool(each['foreign']) for each in runs)} | "
        f"{len(first['foreign'])} | {len(unnoted)} without a note | {len(foreign)} |",
        "",
        "Built-in variants are right, so whatever is red there is a false alarm. What is red of a "
        "function by others is a deviation that [a note](../reference/foreign.md) accounts for, or "
        "a false alarm. A deviation close to its limit can be red under one seed and not under "
        "another; it is a property of the function.",
        "",
        *_listed("Red", (f"`{name}`: {reason}" for name, reason in sorted(red.items()))),
        *_listed("Changed, built-in", map(_told, sorted(built_in.items()))),
        *_listed("Changed, by others", map(_told, sorted(foreign.items()))),
        *_listed("Without a note", sorted(unnoted)),
        "## Time of the fast tier",
        "",
        "Median seconds of a variant in one dtype, all its implementations and its layer, under "
        "the load above.",
        "",
        "| variant and dtype | seconds |",
        "| --- | --- |",
        *(f"| {key} | {value / 1e3:.1f} |" for key, value in spent.items()),
    ]
    return "\n".join(lines) + "\n", not (red or built_in or unnoted)


def _changed(found: Iterable[dict[str, str]]) -> dict[str, Counter[str]]:
    """Return the instances that did not have one status in all runs."""
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    runs = 0
    for statuses in found:
        runs += 1
        for name, status in statuses.items():
            seen[name][status] += 1
    return {name: counts for name, counts in seen.items() if set(counts.values()) != {runs}}


def _told(item: tuple[str, Counter[str]]) -> str:
    name, counts = item
    return f"`{name}`: " + ", ".join(f"{count} {status}" for status, count in counts.items())


def _listed(title: str, lines: Iterable[str]) -> list[str]:
    shown = [f"- {line}" for line in lines]
    return [f"## {title}", "", *shown, ""] if shown else []


if __name__ == "__main__":
    raise SystemExit(main())
