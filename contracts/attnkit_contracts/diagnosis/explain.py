"""Says what is wrong behind a failed check: which named mistake, on which smallest input.

The calls of the check are looked at one by one. Of the first wrong one, every named mistake of
the family is asked whether it gives just this output. If several do, further calls that tell them
apart are tried. The call is then made as small as it can be with the same fault; see `shrinking`
for that and `scripts` for what is written down.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from attnkit_contracts.diagnosis import observations as experiments
from attnkit_contracts.diagnosis import relations, scripts
from attnkit_contracts.diagnosis import smallest as shrinking
from attnkit_contracts.diagnosis.faults import fault_of, with_grad_out
from attnkit_contracts.foreign.layers import is_foreign
from attnkit_contracts.inputs import layouts
from attnkit_contracts.reports.diagnosis import Diagnosis, Explaining, Explanation

if TYPE_CHECKING:
    from collections.abc import Callable

    from attnkit_contracts.definitions.mistakes.mistake import Mistake
    from attnkit_contracts.diagnosis.observations import Fault
    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.subjects.subject import Subject

CALLS = 12
"""How many calls of a check are looked at, smallest first."""

GRADIENT_CALLS = 2

ELEMENTS = 3
"""How many wrong elements are shown."""

NO_FAULT = (
    "every call of this check gives the right output by itself: what is broken is a rule between "
    "calls, a gradient, a state, or a refusal"
)

NO_DEFINITION = (
    "no call of this check fails by itself, and nobody has a definition to compare it with: what "
    "is broken is a rule between calls, a gradient, or what is kept"
)


UNLIKE_DEFINITION = (
    "no call of this check breaks a rule between calls; compare the layer, step by step, with the "
    "definition that its variant brings, or what is kept is broken"
)


def explain(subject: Subject, rule: str, hint: Diagnosis | None = None) -> Explanation:
    """Explain what a subject got wrong in the calls that a check, ``rule``, made.

    The mistakes that the diagnosis of another failure names, ``hint``, are asked first.
    """
    last, calls = subject.last, tuple(subject.calls)
    try:
        with torch.random.fork_rng(devices=[]):
            return _explain(subject, calls, rule, hint)
    finally:
        subject.last = last


def _explain(
    subject: Subject, calls: tuple[Call, ...], rule: str, hint: Diagnosis | None
) -> Explanation:
    # a rule between calls, where a single one has no definition to be held to
    related = None if subject.is_defined else relations.explained(subject, calls, rule)
    if related is not None:
        return related
    found = _first_fault(subject, calls)
    if found is None:
        variant = subject.target.variant
        told = NO_DEFINITION if is_foreign(variant) else NO_FAULT
        if subject.layer is not None and variant.layer_definition is not None:
            told = UNLIKE_DEFINITION
        return _explain_gradient(subject, calls) or Explanation(Diagnosis(seen=told))
    call, fault = found
    factor = experiments.gain(fault)
    call = shrinking.one_sample(subject, call, fault)
    found_as = suspected(subject, call, hint) if fault.kind in ("values", "not finite") else NOBODY
    suspects, dtype = found_as.mistakes, found_as.dtype

    def explained(other: Call) -> bool:
        return not suspects or experiments.explains(suspects[0], subject, other, dtype)

    smallest, shown, script = _shrunk(subject, call, fault, explained)
    return Explanation(
        diagnosis=_diagnosis(subject, shown, found_as, factor),
        smallest=smallest.describe(),
        elements=elements(shown),
        script=script,
    )


def _shrunk(
    subject: Subject,
    call: Call,
    fault: Fault,
    explained: Callable[[Call], bool] = lambda _: True,
) -> tuple[Call, Fault, str]:
    """Return the smallest call with the same fault and explanation, its fault, and its script."""

    def persists(other: Call) -> bool:
        again = fault_of(subject, other)
        if again is None or (again.kind, again.name) != (fault.kind, fault.name):
            return False
        return explained(other)

    smallest = shrinking.shrink(subject, call, persists)
    shown = fault_of(subject, smallest) or fault
    return smallest, shown, scripts.script(subject, smallest, persists)


def _first_fault(subject: Subject, calls: tuple[Call, ...]) -> tuple[Call, Fault] | None:
    """Return the smallest wrong call of some."""
    ordered = sorted(calls, key=lambda call: sum(t.numel() for t in call.tensors.values()))
    foreign = is_foreign(subject.target.variant)
    for call in [*ordered[:CALLS], *calls[-1:]]:
        fault = fault_of(subject, call)
        # a foreign layer's own float64 is not the truth
        if fault is not None and not (foreign and fault.kind == "values"):
            return call, fault
    return None


def _explain_gradient(subject: Subject, calls: tuple[Call, ...]) -> Explanation | None:
    wanted = [each for each in calls if any(t.requires_grad for t in each.tensors.values())]
    for call in wanted[:GRADIENT_CALLS]:
        plain = with_grad_out(subject, call.map(lambda _, tensor: tensor.detach()))
        for tried in (plain, plain.laid(layouts.alone("grad_out"))):
            fault = fault_of(subject, tried)
            if fault is not None:
                smallest, shown, script = _shrunk(subject, tried, fault)
                told = Diagnosis(seen=_gradient_diagnosis(fault))
                return Explanation(told, smallest.describe(), elements(shown), script)
    return None


def _gradient_diagnosis(fault: Fault) -> str:
    if fault.limit is None:
        return f"the output is right, its gradient: {fault.kind}: {fault.told}"
    return (
        f"the output is right, the {fault.name} is not ({fault.error:.3g} times the gate); "
        "no named mistake is about gradients alone"
    )


class Suspects(NamedTuple):
    """What explains a wrong call.

    Attributes:
        mistakes: None, one, or several that nothing tells apart.
        in_float32: Whether a float64 output is only as good as one of float32.
    """

    mistakes: tuple[Mistake[Any], ...] = ()
    in_float32: bool = False

    @property
    def dtype(self) -> torch.dtype | None:
        """Whose roundoff is allowed; None for the subject's."""
        return torch.float32 if self.in_float32 else None


NOBODY = Suspects()


def suspected(subject: Subject, call: Call, hint: Diagnosis | None = None) -> Suspects:
    """Return the mistakes that explain a wrong call, and further calls as well.

    Several are returned only if no further call tells them apart.
    """
    seen = experiments.observe(subject, call)
    if seen.error is not None:
        return NOBODY
    if experiments.in_float32(subject, seen):
        return Suspects(in_float32=True)
    library = subject.mistakes
    likely = [each for each in library if hint is not None and each.name in hint.named]
    for wide in (None, torch.float32) if subject.dtype == torch.float64 else (None,):
        for some in (likely, library):
            found = experiments.explaining(some, subject, seen, wide)
            if found:
                return Suspects(_told_apart(subject, found, wide), wide is not None)
    return NOBODY


def _told_apart(
    subject: Subject, found: list[Mistake[Any]], dtype: torch.dtype | None
) -> tuple[Mistake[Any], ...]:
    """Ask further calls, until one mistake is left; what contradicts them all is left out."""
    for call in subject.telling_calls():
        if len(found) <= 1:
            break
        seen = experiments.observe(subject, call)
        if seen.error is not None:
            continue
        agreeing = [each for each in found if experiments.is_consistent(each, subject, seen, dtype)]
        found = agreeing or found
    return tuple(found)


def _diagnosis(subject: Subject, fault: Fault, found: Suspects, factor: float | None) -> Diagnosis:
    return Diagnosis(
        mistakes=tuple(
            Explaining(name=each.name, statement=each.statement) for each in found.mistakes
        ),
        in_float32=found.in_float32,
        seen="" if found.mistakes or found.in_float32 else _seen(subject, fault, factor),
        written=fault.written,
    )


def _seen(subject: Subject, fault: Fault, factor: float | None) -> str:
    count = len(subject.mistakes)
    if fault.kind in ("values", "not finite") and count:
        what = "values" if fault.kind == "values" else "NaN or inf"
        times = f"; the output is {factor:.5g} times the right one" if factor is not None else ""
        return f"wrong {what} that none of {count} named mistakes explains{times}"
    if fault.kind == "write":
        return f"the output is right, but {fault.name} is written to"
    told = f": {fault.told}" if fault.told else ""
    return f"a call {'has the wrong ' if fault.limit is not None else ''}{fault.kind}{told}"


def elements(fault: Fault) -> str:
    """Show the first wrong elements of a fault, expected and got."""
    wrong = fault.beyond
    if wrong is None or fault.got is None or fault.limit is None:
        return ""
    places = [tuple(int(i) for i in place) for place in wrong.nonzero()[:ELEMENTS]]
    digits = {torch.float64: 17, torch.float32: 8}.get(fault.got.dtype, 4)
    exact, got = fault.limit.exact + 0.0, fault.got
    lines = [
        f"{fault.name}[{', '.join(map(str, place))}]: expected {float(exact[place]):.{digits}g}, "
        f"got {float(got[place]):.{digits}g}"
        for place in places
    ]
    count = f"{int(wrong.sum())} of {wrong.numel()} elements of {fault.name} are wrong"
    return "\n".join([count, *lines])
