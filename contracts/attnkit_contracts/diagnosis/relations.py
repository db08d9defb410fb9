"""Rules between calls, written as the few lines of Python that show one to be broken.

Some faults show in no single call that could be compared with a definition: what a check found
broken is a rule between calls, or what a call must refuse. The lines here are both what is run to
find the smallest such call and what is written down for it: a script shows what was seen, since it
is what was run. The rules themselves are in `rules`.
"""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

import attnkit
from attnkit_contracts.diagnosis import smallest as shrinking
from attnkit_contracts.diagnosis.cases import said
from attnkit_contracts.diagnosis.rules import RELATIONS
from attnkit_contracts.diagnosis.scripts import (
    ANYWHERE,
    call_lines,
    described,
    related_script,
    whereabouts,
)
from attnkit_contracts.inputs import cuts
from attnkit_contracts.reports.diagnosis import Diagnosis, Explanation

if TYPE_CHECKING:
    from attnkit_contracts.diagnosis.rules import Relation
    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.subjects.subject import Subject

CALLS = 4
"""How many calls of a check are looked at, and the last."""


class Shown(NamedTuple):
    """How a call breaks a rule."""

    told: str
    lines: tuple[str, ...]


def explained(
    subject: Subject, calls: tuple[Call, ...], rule: str, reason: str
) -> Explanation | None:
    """Return what breaks a rule; None where it has no lines here, or no call breaks it."""
    some = dict.fromkeys(map(id, (*calls[:CALLS], *calls[-1:])))
    plain = [each.map(lambda _, t: t.detach()) for each in calls if id(each) in some]
    if subject.layer is not None:
        # a context would have to be cut and written down as well
        plain = [call for call in plain if set(call.tensors) == {"x"}]
        # some checks call the layer past the subject
        plain += [] if plain or "context_dim" in subject.given else [_own(subject)]
    for relation in RELATIONS:
        if rule not in relation.rules or not relation.applies(subject, reason):
            continue
        for call in reversed(plain) if relation.is_last else plain:
            found = shown(relation, subject, call, reason)
            if found is not None:
                return _smallest(relation, subject, call, found, reason)
    return None


def _own(subject: Subject) -> Call:
    return subject.draw_whole("related", batch=2, length=8)


def shown(relation: Relation, subject: Subject, call: Call, reason: str) -> Shown | None:
    """Return how a call breaks a rule; None if it does not."""
    given = {"mask": said(call.mask), "reason": reason, "device": torch.device(subject.device).type}
    if "{call}" in relation.lines:
        where = whereabouts(subject.target.variant) or ANYWHERE
        given["call"] = "\n".join(call_lines(subject, call, where))
    if "{allowed}" in relation.lines:
        # how far two right outputs may be apart
        limit = subject.bound(call, probes=4)
        given["allowed"] = f"{float((2 * limit.gate * limit.unit).max()):.3g}"
    for case in relation.cases(subject, call):
        told = relation.told.format(**given, **case)
        lines = relation.lines.strip().format(told=told, **given, **case)
        if _fails(lines, subject, call):
            return Shown(told, tuple(lines.splitlines()))
    return None


def _smallest(
    relation: Relation, subject: Subject, call: Call, found: Shown, reason: str
) -> Explanation:
    def lines(other: Call) -> tuple[str, ...]:
        again = shown(relation, subject, other, reason)
        return () if again is None else again.lines

    asked = _asked(call)

    def persists(other: Call) -> bool:
        # what must be refused is refused for what it asks
        return (not relation.is_last or _asked(other) == asked) and bool(lines(other))

    smallest = shrinking.shrink(subject, call, persists)
    # what is not deterministic may be right the next time
    found = shown(relation, subject, smallest, reason) or found
    script = related_script(subject, smallest, lines)
    return Explanation(Diagnosis(seen=found.told), described(smallest), script=script)


def _asked(call: Call) -> tuple[object, ...]:
    """Return what a call asks for, beside its sizes."""
    sizes, tensors = cuts.sizes_of(call), call.tensors
    widths = {tensors[name].shape[-1] for name in ("query", "value") if name in tensors}
    heads = {tensors[name].shape[1] for name in ("query", "value") if name in tensors}
    named = sorted(tensors), sorted(call.extras), call.mask.parts, call.mask.is_causal
    return *named, sizes.queries == sizes.keys, sizes.heads == 1, len(widths), len(heads)


def _fails(lines: str, subject: Subject, call: Call) -> bool:
    """Run the lines, and return whether they end in an AssertionError."""
    tensors = {name: tensor.detach().clone() for name, tensor in call.tensors.items()}
    variant = subject.target.variant
    where = whereabouts(variant) or ANYWHERE
    space: dict[str, Any] = {"torch": torch, "attnkit": attnkit, **tensors}
    space |= {"layer": subject.layer} if where.name != "layer" else {}
    space |= {where.value: variant, where.name: variant} if where.name.isidentifier() else {}
    try:
        with (
            torch.enable_grad(),
            torch.random.fork_rng(devices=[]),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            # lines of `rules`, with numbers and masks put in
            exec(lines, space)
    except AssertionError:
        return True
    # a stranger's code may raise anything else: then the lines do not show what they are about
    except Exception:
        return False
    return False
