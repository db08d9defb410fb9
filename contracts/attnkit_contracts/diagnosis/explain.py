"""Says what is wrong behind a failed check: which named mistake, on which smallest input.

The calls of the check are looked at one by one. Of the first wrong one, every named mistake of
the family is asked whether it gives just this output. If several do, further calls that tell them
apart are tried. The call is then made as small as it can be with the same fault; see `shrinking`
for that and `scripts` for what is written down.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from attnkit.errors import UnsupportedError
from attnkit_contracts.diagnosis import fresh, pairs, relations, scripts
from attnkit_contracts.diagnosis import observations as experiments
from attnkit_contracts.diagnosis import smallest as shrinking
from attnkit_contracts.diagnosis.faults import fault_of, layer_fault, with_grad_out
from attnkit_contracts.diagnosis.rules import SILENCE
from attnkit_contracts.foreign.layers import is_foreign
from attnkit_contracts.inputs import layouts
from attnkit_contracts.reports.diagnosis import Diagnosis, Explaining, Explanation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from attnkit_contracts.definitions.mistakes.mistake import Mistake
    from attnkit_contracts.diagnosis.observations import Fault
    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.subjects.subject import Subject

CALLS = 12
"""How many calls of a check are looked at, smallest first."""

GRADIENT_CALLS = 2

ELEMENTS = 3
"""How many wrong elements are shown."""

NO_FAULT = "what is wrong is not the output of one call, nor its gradient"

HISTORY = (
    "right in a new process, wrong after another call of the same sizes: what a call gives depends "
    "on the calls before it"
)

OF_LAYERS = ("N1.layer", "N2.layer", "N1.layer_options")
"""Checks that compare a layer with the definition that its variant brings."""

UNLIKE_DEFINITION = "the layer and the definition that its variant brings differ"
UNLIKE_GRADIENT = "the output is that of the definition, a gradient is not"


def explain(
    subject: Subject, rule: str, hint: Diagnosis | None = None, reason: str = ""
) -> Explanation:
    """Explain what a subject got wrong in the calls that a check, ``rule``, made.

    Args:
        subject: Whose calls; those of layers that the check made of it, with other options, too.
        rule: Id of the check.
        hint: The diagnosis of another failure: the mistakes that it names are asked first.
        reason: What the check said.
    """
    last = subject.last
    some = [(each, tuple(each.calls)) for each in (subject, *subject.remakes)]
    try:
        with torch.random.fork_rng(devices=[]):
            for each, calls in some:
                found = _explain(each, calls, rule, hint, reason)
                if found is not None:
                    return found
    finally:
        subject.last = last
    if rule in OF_LAYERS:
        return _explain_layer(some)
    return Explanation(Diagnosis(seen=NO_FAULT))


def _explain_layer(some: Iterable[tuple[Any, tuple[Call, ...]]]) -> Explanation:
    """Show the smallest call whose output is not that of the layer's definition."""
    asked = [(subject, call) for subject, calls in some for call in calls]
    if not asked:
        return Explanation(Diagnosis(seen="the definition that its variant brings raises"))
    for subject, call in sorted(asked, key=lambda each: each[1].tensors["x"].numel()):
        call = call.map(lambda _, tensor: tensor.detach())
        try:
            fault = layer_fault(subject, call)
        except UnsupportedError:
            continue
        # the definition is a stranger's, too
        except Exception as error:
            told = f"the layer, or its definition, raises {type(error).__name__}: {error}"
            return Explanation(Diagnosis(seen=told))
        if fault is not None:
            described = scripts.described(call)
            return Explanation(Diagnosis(seen=UNLIKE_DEFINITION), described, elements(fault))
    return Explanation(Diagnosis(seen=UNLIKE_GRADIENT))


def _explain(
    subject: Subject, calls: tuple[Call, ...], rule: str, hint: Diagnosis | None, reason: str
) -> Explanation | None:
    # what must be refused is no output to be compared; nor is that of a layer without a definition
    related = relations.explained(subject, calls, rule, reason)
    if related is not None and (not subject.is_defined or reason.endswith(SILENCE)):
        return related
    found = _first_fault(subject, calls)
    if found is None:
        return related or _explain_gradient(subject, calls)
    call, fault = found
    factor = experiments.gain(fault)
    call = shrinking.one_sample(subject, call, fault)
    found_as = suspected(subject, call, hint) if fault.kind in ("values", "not finite") else NOBODY
    suspects, dtype = found_as.mistakes, found_as.dtype

    def explained(other: Call) -> bool:
        return not suspects or experiments.explains(suspects[0], subject, other, dtype)

    known = hint is not None and bool(suspects) and suspects[0].name in hint.named
    smallest, shown, script = _shrunk(subject, call, fault, explained, tried=known)
    diagnosis = _diagnosis(subject, shown, found_as, factor)
    if related is not None and not script.text:
        return related
    if script.history:
        diagnosis = Diagnosis(seen=HISTORY, alike=True)
    return Explanation(diagnosis, scripts.described(smallest), elements(shown), script.text)


class Script(NamedTuple):
    """What shows a fault by itself.

    Attributes:
        text: Python; empty where nothing does.
        history: Whether it takes another call before the wrong one.
    """

    text: str
    history: bool = False


def _shrunk(
    subject: Subject,
    call: Call,
    fault: Fault,
    explained: Callable[[Call], bool] = lambda _: True,
    *,
    tried: bool = False,
) -> tuple[Call, Fault, Script]:
    """Return the smallest call with the same fault and explanation, its fault, and its script.

    One for a mistake that was ``tried`` in a process of its own before is not tried there again.
    """

    def persists(other: Call) -> bool:
        again = fault_of(subject, other)
        if again is None or (again.kind, again.name) != (fault.kind, fault.name):
            return False
        return explained(other)

    smallest = shrinking.shrink(subject, call, persists)
    written = scripts.inputs(smallest, persists)
    script = Script("")
    if written is not None:
        # the numbers of the script are those that are told
        smallest, lines = written
        script = _alone(subject, smallest, lines, tried=tried)
    return smallest, fault_of(subject, smallest) or fault, script


def _alone(subject: Subject, call: Call, lines: list[str], *, tried: bool) -> Script:
    """Return a script that fails in a process of its own; without text where none does."""
    text = scripts.script(subject, call, lines)
    if not text or tried or fresh.fails(text):
        return Script(text)
    for longer in scripts.after_another(subject, call, lines, text):
        if fresh.fails(longer):
            return Script(longer, history=True)
    return Script("")


def _first_fault(subject: Subject, calls: tuple[Call, ...]) -> tuple[Call, Fault] | None:
    """Return the smallest wrong call of some."""
    # one without tokens, an empty piece say, has no number that could be wrong
    calls = tuple(c for c in calls if all(t.numel() for t in c.tensors.values())) or calls
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
                return Explanation(told, scripts.described(smallest), elements(shown), script.text)
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
        here: A mistake that explains this call, and is not made in others.
    """

    mistakes: tuple[Mistake[Any], ...] = ()
    in_float32: bool = False
    here: Mistake[Any] | None = None

    @property
    def dtype(self) -> torch.dtype | None:
        """Whose roundoff is allowed; None for the subject's."""
        return torch.float32 if self.in_float32 else None


NOBODY = Suspects()


def suspected(subject: Subject, call: Call, hint: Diagnosis | None = None) -> Suspects:
    """Return the mistakes that explain a wrong call, and further calls as well.

    Several are returned only if no further call tells them apart. Where none does, two at once are
    asked. One that is not made where it would show is not the name of what is wrong.
    """
    seen = experiments.observe(subject, call)
    if seen.error is not None:
        return NOBODY
    if experiments.in_float32(subject, seen):
        return Suspects(in_float32=True)
    library = subject.mistakes
    known = set() if hint is None else set(hint.named)
    likely = [each for each in library if each.name in known]
    for wide in (None, torch.float32) if subject.dtype == torch.float64 else (None,):
        explains = experiments.explainer(subject, seen, wide)
        found = (
            [each for each in likely if explains(each)]
            or [each for each in library if explains(each)]
            or pairs.explaining(subject, seen, explains)
        )
        if found:
            tried = all(each.name in known for each in found)
            left = _told_apart(subject, found, wide, tried=tried)
            here = None if left else found[0]
            return Suspects(left, wide is not None and bool(left), here)
    return NOBODY


def _told_apart(
    subject: Subject, found: list[Mistake[Any]], dtype: torch.dtype | None, *, tried: bool
) -> tuple[Mistake[Any], ...]:
    """Ask further calls, until one mistake is left that others have been ``tried`` on.

    What another call contradicts is left out; none is left where a call is right that would not be.
    """
    for call in subject.telling_calls():
        if tried and len(found) <= 1:
            break
        seen = experiments.observe(subject, call)
        if seen.error is not None:
            continue
        agreeing = [each for each in found if experiments.is_consistent(each, subject, seen, dtype)]
        if not agreeing and experiments.is_right(subject, seen, dtype):
            return ()
        found = agreeing or found
    return tuple(found)


def _diagnosis(subject: Subject, fault: Fault, found: Suspects, factor: float | None) -> Diagnosis:
    return Diagnosis(
        mistakes=tuple(
            Explaining(name=each.name, statement=each.statement) for each in found.mistakes
        ),
        in_float32=found.in_float32,
        seen=""
        if found.mistakes or found.in_float32
        else _seen(subject, fault, factor, found.here),
        alike=factor is not None and not found.here,
        written=fault.written,
    )


def _seen(subject: Subject, fault: Fault, factor: float | None, here: Mistake[Any] | None) -> str:
    if here is not None:
        return (
            f"this call gives what the definition with {here.statement} gives ({here.name}), other "
            "calls do not: it depends on the call"
        )
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
