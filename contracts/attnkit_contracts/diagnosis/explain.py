"""Says what is wrong behind a failed check: which named mistake, on which smallest input.

The calls of the check are looked at one by one. Of the first wrong one, every named mistake of
the family is asked whether it gives just this output. If several do, further calls that tell them
apart are tried. The call is then made as small as it can be with the same fault; see `shrinking`
for that and `scripts` for what is written down.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

import attnkit
from attnkit.masks.constructors import Sizes
from attnkit_contracts.diagnosis import observations as experiments
from attnkit_contracts.diagnosis import relations, scripts
from attnkit_contracts.diagnosis import smallest as shrinking
from attnkit_contracts.diagnosis.explanation import NAMED, Explanation
from attnkit_contracts.diagnosis.faults import fault_of, with_grad_out
from attnkit_contracts.foreign.layers import is_foreign
from attnkit_contracts.inputs import layouts
from attnkit_contracts.inputs.calls import normal
from attnkit_contracts.subjects.layers import LayerSubject
from attnkit_contracts.subjects.operations import RecurrenceOperation, SoftmaxOperation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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


def explain(subject: Subject, rule: str, hint: str = "") -> Explanation:
    """Explain what a subject got wrong in the calls that a check made.

    Args:
        subject: With the calls of a check that failed.
        rule: The id of the check.
        hint: The diagnosis of another failure of it; the mistakes it names are asked first.
    """
    last, calls = subject.last, tuple(subject.calls)
    try:
        with torch.random.fork_rng(devices=[]):
            return _explain(subject, calls, rule, hint)
    finally:
        subject.last = last


def _explain(subject: Subject, calls: tuple[Call, ...], rule: str, hint: str) -> Explanation:
    related = _explain_relation(subject, calls, rule)
    if related is not None:
        return related
    found = _first_fault(subject, calls)
    if found is None:
        return _explain_gradient(subject, calls) or Explanation(
            NO_DEFINITION if is_foreign(subject.target.variant) else NO_FAULT
        )
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
        named=tuple(each.name for each in suspects),
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


def _explain_relation(subject: Subject, calls: tuple[Call, ...], rule: str) -> Explanation | None:
    """Show the rule itself to be broken, where a single call has no definition to be held to."""
    if not isinstance(subject, LayerSubject) or experiments.is_mixture(subject):
        return None
    found = relations.explained(subject, calls, rule)
    if found is None:
        return None
    return Explanation(found.told, found.call.describe(), script=found.script)


def _explain_gradient(subject: Subject, calls: tuple[Call, ...]) -> Explanation | None:
    wanted = [each for each in calls if any(t.requires_grad for t in each.tensors.values())]
    for call in wanted[:GRADIENT_CALLS]:
        plain = with_grad_out(subject, call.map(lambda _, tensor: tensor.detach()))
        for tried in (plain, plain.laid(layouts.alone("grad_out"))):
            fault = fault_of(subject, tried)
            if fault is not None:
                smallest, shown, script = _shrunk(subject, tried, fault)
                told = _gradient_diagnosis(fault)
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


def suspected(subject: Subject, call: Call, hint: str = "") -> Suspects:
    """Return the mistakes that explain a wrong call, and further calls as well.

    Several are returned only if no further call tells them apart.
    """
    seen = experiments.observe(subject, call)
    if seen.error is not None:
        return NOBODY
    if experiments.in_float32(subject, seen):
        return Suspects(in_float32=True)
    library = experiments.mistakes(subject)
    likely = [each for each in library if f"({each.name})" in hint]
    for wide in (None, torch.float32) if subject.dtype == torch.float64 else (None,):
        for some in (likely, library):
            found = [
                each
                for each in some
                if experiments.explanation(each, subject, seen, wide) is not None
            ]
            if found:
                return Suspects(_told_apart(subject, found, wide), wide is not None)
    return NOBODY


def _told_apart(
    subject: Subject, found: list[Mistake[Any]], dtype: torch.dtype | None
) -> tuple[Mistake[Any], ...]:
    """Ask further calls, until one mistake is left; what contradicts them all is left out."""
    for call in further_calls(subject):
        if len(found) <= 1:
            break
        seen = experiments.observe(subject, call)
        if seen.error is not None:
            continue
        agreeing = [each for each in found if experiments.is_consistent(each, subject, seen, dtype)]
        found = agreeing or found
    return tuple(found)


def further_calls(subject: Subject) -> Iterator[Call]:
    """Yield calls that show one thing each, as far as it is promised."""
    if isinstance(subject, SoftmaxOperation) and not subject.promises.needs:
        yield from _softmax_calls(subject)
    elif isinstance(subject, RecurrenceOperation):
        yield from _recurrence_calls(subject)


def _softmax_calls(subject: SoftmaxOperation) -> Iterator[Call]:
    promises = subject.promises
    length, heads = 20, subject.heads
    sizes = Sizes(2, heads, length, length)
    yield subject.draw("tell apart", length=length, width=20)
    for part in promises.masks:
        for causal in (True, False):
            if getattr(promises, "causal" if causal else "bidirectional"):
                mask = subject.mask(sizes, causal=causal) & subject.part(part, sizes)
                yield subject.draw("tell apart", length=length, mask=mask)
    if promises.cross:
        for queries in (7, 26):
            yield subject.draw("tell apart", length=queries, keys=length)
    if promises.gqa:
        yield subject.draw("tell apart", length=length, heads=4, kv_heads=2)
    if promises.value_width:
        yield subject.draw("tell apart", length=length, value_width=24)
    yield from _softmax_options(subject, length)
    # some mistakes begin where there are several blocks of keys
    yield subject.draw("tell apart", length=90)


def _softmax_options(subject: SoftmaxOperation, length: int) -> Iterator[Call]:
    promises, heads = subject.promises, subject.heads
    plain, draw = subject.draw("tell apart", length=length), subject.random("tell apart")
    with_bias = plain.given(bias=subject.cast(normal(draw, 1, heads, length, length)))
    with_sinks = plain.given(sinks=subject.cast(normal(draw, heads)))
    if promises.scale:
        yield plain.saying(scale=0.7)
    if promises.softcap:
        yield plain.saying(softcap=1.5)
    if promises.bias:
        yield with_bias
    if promises.bias and promises.softcap:
        yield with_bias.saying(softcap=1.5)
    if promises.sinks:
        yield with_sinks
    if promises.sinks and promises.scale:
        yield with_sinks.saying(scale=0.7)
    if promises.sinks and promises.softcap:
        yield with_sinks.saying(softcap=0.5)
    if promises.dropout:
        yield plain.saying(dropout_p=0.5)


def _recurrence_calls(subject: RecurrenceOperation) -> Iterator[Call]:
    promises = subject.promises
    for decay in promises.decay or ("none",):
        yield subject.draw("tell apart", length=20, decay=decay)
    if promises.gqa:
        yield subject.draw("tell apart", length=20, heads=4, groups=2)
    if promises.scale:
        yield subject.draw("tell apart", length=20).saying(scale=0.7)
    if promises.state:
        yield subject.draw("tell apart", length=20, state=True)
    for part in ("padding", "documents"):
        if part in promises.masks:
            mask = _part(part, subject.device)
            yield subject.draw("tell apart", length=20, mask=mask)


def _part(part: str, device: str) -> attnkit.Mask:
    if part == "padding":
        return attnkit.padding(torch.tensor([20, 14], device=device))
    return attnkit.documents(torch.tensor([[0] * 8 + [1] * 12] * 2, device=device))


def _diagnosis(subject: Subject, fault: Fault, found: Suspects, factor: float | None) -> str:
    also = f"; {' and '.join(fault.written)} is written to, besides" if fault.written else ""
    return f"{_wrong(subject, fault, found, factor)}{also}"


def _wrong(subject: Subject, fault: Fault, found: Suspects, factor: float | None) -> str:
    suspects = found.mistakes
    if suspects:
        told = ", or with ".join(f"{each.statement} ({each.name})" for each in suspects)
        also = "; no call tells these apart" if len(suspects) > 1 else ""
        wide = ", computed in float32 although inputs are float64" if found.in_float32 else ""
        return f"{NAMED} with {told}{wide}{also}"
    if found.in_float32:
        return f"{NAMED} computed in float32 although inputs are float64"
    count = len(experiments.mistakes(subject))
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
    if fault.got is None or fault.limit is None or fault.got.shape != fault.limit.exact.shape:
        return ""
    off = (fault.got.double() - fault.limit.exact).abs() / fault.limit.unit
    wrong = ~(off <= fault.limit.gate)
    if not wrong.any():
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
