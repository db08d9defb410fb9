"""Which known mistake a function equals, in whatever convention it is written: `diagnose`.

A function is called in every way that its signature leaves open. Where all calls are right in one,
the answer is that way, as a command to paste; else the way in which the fewest named mistakes
explain most.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from pydantic import Field

from attnkit.errors import ArgumentError
from attnkit.frozen import Frozen
from attnkit_contracts.definitions.mistakes.softmax import MISTAKES
from attnkit_contracts.diagnosis import signatures
from attnkit_contracts.diagnosis.explain import elements
from attnkit_contracts.diagnosis.probes import probes
from attnkit_contracts.diagnosis.remedies import REMEDIES
from attnkit_contracts.foreign import doors
from attnkit_contracts.foreign.function_calls import SoftmaxCall
from attnkit_contracts.foreign.functions import FUNCTION, adapt
from attnkit_contracts.reports.diagnosis import Explaining
from attnkit_contracts.subjects.softmax import SoftmaxOperation
from attnkit_contracts.subjects.target import Target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor

    from attnkit_contracts.diagnosis.probes import Probe
    from attnkit_contracts.foreign.conventions import Convention

EVERYTHING = (
    "causal, bidirectional, cross, gqa, value_width, scale, softcap, sinks, bias, dense, padding, "
    "window"
)

FEW = 4
"""How many ways are looked at for mistakes, of those with most right calls."""


PATIENCE = 2
"""How many calls may go unexplained before pairs of mistakes are given up."""


class Asked(Frozen):
    """What came of one small call."""

    what: str = Field(description="the call shows")
    outcome: Literal["right", "mistaken", "unexplained", "raises"]
    mistakes: tuple[Explaining, ...] = Field(
        default=(), description="that give this output; several if this call tells none apart"
    )
    told: str = Field(
        default="", description="what was raised; of what is unexplained, a wrong element"
    )


class FunctionDiagnosis(Frozen):
    """What a function computes, as far as small calls tell."""

    function: str = Field(description="module:name, or what a callable is called")
    verdict: Literal["right", "mistaken", "unexplained"]
    convention: dict[str, str] = Field(description="how it is called, where that is not usual")
    command: str = Field(description="judges it so")
    mistakes: tuple[Explaining, ...] = Field(description="that explain what is wrong")
    fixes: tuple[str, ...] = Field(description="a line for each, where there is one")
    asked: tuple[Asked, ...]
    untried: tuple[str, ...] = Field(
        default=(), description="its arguments that no call gave: what they are is not known"
    )

    def __str__(self) -> str:
        """Say it on one screen."""
        lines = [f"{self.function}: {_VERDICTS[self.verdict]}"]
        if self.convention:
            told = ", ".join(f"{name} {value}" for name, value in self.convention.items())
            lines.append(f"called with: {told}")
        lines += [f"mistake: {each.statement} ({each.name})" for each in self.mistakes]
        lines += [f"fix: {each}" for each in self.fixes]
        for outcome in ("right", "mistaken", "unexplained"):
            some = [each.what for each in self.asked if each.outcome == outcome]
            few = f"{len(some)} calls" if outcome == "right" else "; ".join(some)
            lines += [f"{outcome}: {few}"] if some else []
        shown = next((each for each in self.asked if each.outcome == "unexplained"), None)
        lines += [f"  {shown.what}: {shown.told}"] if shown is not None and shown.told else []
        raised = {each.told: each.what for each in self.asked if each.outcome == "raises"}
        lines += [f"raises: {what}: {told}" for told, what in raised.items()]
        if self.untried:
            lines.append(f"not tried: {', '.join(self.untried)}; say what they are, {_EXAMPLE}")
        return "\n".join([*lines, f"to judge it: {self.command}"])


_EXAMPLE = "--argument mask=NAME for instance"

_VERDICTS = {
    "right": "right, as far as small calls tell",
    "mistaken": "equals the definition with a known mistake",
    "unexplained": "wrong, and no named mistake nor two of them explain it all",
}


class _Tried(NamedTuple):
    """A way to call a function, and what came: an output, or what was raised."""

    convention: Convention
    answers: tuple[tuple[Probe, Tensor | str, bool], ...]

    @property
    def right(self) -> int:
        return sum(is_right for _, _, is_right in self.answers)

    @property
    def wrong(self) -> int:
        outputs = (each for each in self.answers if isinstance(each[1], torch.Tensor))
        return sum(not is_right for _, _, is_right in outputs)

    @property
    def raised(self) -> int:
        return sum(isinstance(got, str) for _, got, _ in self.answers)

    def promises(self) -> str:
        """Return what it can do: what is promised but for what every call of it raised at."""
        found = []
        for name in str(self.convention.promises).split(", "):
            calls = [got for probe, got, _ in self.answers if name in probe.needs]
            if not calls or not all(isinstance(got, str) for got in calls):
                found.append(name)
        return ",".join(found)


def diagnose(function: str | Callable[..., Any], **told: Any) -> FunctionDiagnosis:
    """Say which known mistake of softmax attention a function equals, across conventions.

    Args:
        function: ``"package.module:attribute"``, or a callable, called with query, key and value.
        told: Fields of `attnkit_contracts.Convention` that are known, ``layout="BLHE"`` say; the
            others are guessed by the names of arguments, or tried in every way.

    Raises:
        ArgumentError: There is no such function, or what is told contradicts itself.
    """
    if told.get("family", "softmax") != "softmax":
        raise ArgumentError("diagnose is about softmax attention; anything else: attnkit judge")
    target = doors.load_target(function)
    asked = tuple(probes(_definition()))
    tried: list[_Tried] = []
    for some in signatures.conventions(target, told):
        tried += [_try(target, convention, asked) for convention in some]
        right = [each for each in tried if each.right and not each.wrong]
        if right:
            return _result(function, target, max(right, key=lambda each: each.right))
    if not any(each.right or each.wrong for each in tried):
        raised = next((why for each in tried for _, why, _ in each.answers), "it was not called")
        raise ArgumentError(f"{doors.plain_name(target)} takes no call: {raised}")
    ranked = sorted(
        tried, key=lambda each: (-each.right, each.raised, len(_unusual(each.convention)))
    )
    results = [_result(function, target, each) for each in ranked[:FEW]]
    return min(results, key=_unlikely)


def _definition() -> SoftmaxOperation:
    """Return a subject whose definition is asked; nothing of it is called."""
    variant = adapt(
        _never,
        promises=EVERYTHING,
        name="diagnosed",
        bias_argument="bias",
        softcap_argument="softcap",
        sinks_argument="sinks",
    )
    return SoftmaxOperation(
        Target(
            variant=variant,
            implementation=FUNCTION,
            promises=variant.promises,
            dtype="float32",
            device="cpu",
            level="operation",
        )
    )


def _never(**_: object) -> None:
    raise AssertionError("only the definition is asked")


def _try(target: Callable[..., Any], convention: Convention, asked: Iterable[Probe]) -> _Tried:
    call, claims = SoftmaxCall(target, convention, None), convention.claims
    answers = []
    for probe in asked:
        if not probe.is_asked(claims) or _is_refused(convention, probe):
            continue
        got = _called(call, probe)
        answers.append((probe, got, isinstance(got, torch.Tensor) and probe.error(got) <= 1))
    return _Tried(convention, tuple(answers))


def _is_refused(convention: Convention, probe: Probe) -> bool:
    """Return whether a flag that is aligned upper-left cannot say it, nor a mask."""
    by_flag = convention.mask == "none" and convention.causal_corner == "upper_left"
    return by_flag and probe.what.startswith("causal, L") and probe.what != "causal, L = S"


def _called(call: SoftmaxCall, probe: Probe) -> Tensor | str:
    """Return an output, or what was raised."""
    given = probe.call.map(lambda _, tensor: tensor.clone()).arguments()
    scale = given.pop("scale", None) or given["query"].shape[3] ** -0.5
    options: dict[str, Any] = {"bias": None, "softcap": None, "sinks": None, "dropout_p": 0.0}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            out: object = call(**{**options, **given}, mask=probe.call.mask, scale=scale)
    # a stranger's code may raise anything
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return out if isinstance(out, torch.Tensor) else f"returns {type(out).__name__}"


def _result(
    function: str | Callable[..., Any], target: Callable[..., Any], tried: _Tried
) -> FunctionDiagnosis:
    name = function if isinstance(function, str) else _address(target)
    asked = tuple(_looked_at(tried))
    wrong = [each.outcome for each in asked if each.outcome in ("mistaken", "unexplained")]
    # a name for few of the calls that are wrong is none for the function
    named = wrong.count("mistaken") >= wrong.count("unexplained")
    mistakes = _fewest(asked) if named else ()
    verdict: Literal["right", "mistaken", "unexplained"] = "mistaken" if wrong else "right"
    fixes = [REMEDIES[each.name] for each in mistakes if each.name in REMEDIES]
    return FunctionDiagnosis(
        function=name,
        verdict="unexplained" if "unexplained" in wrong else verdict,
        convention=_unusual(tried.convention),
        command=signatures.pasted(name, tried.convention, tried.promises()),
        mistakes=mistakes,
        fixes=tuple(dict.fromkeys(fixes)),
        asked=asked,
        untried=signatures.untold(target, tried.convention),
    )


def _looked_at(tried: _Tried) -> Iterator[Asked]:
    """Yield what came of each call; pairs are asked until `PATIENCE` calls have no explanation."""
    unexplained = 0
    for probe, got, is_right in tried.answers:
        if isinstance(got, str):
            yield Asked(what=probe.what, outcome="raises", told=got)
        elif is_right:
            yield Asked(what=probe.what, outcome="right")
        else:
            found = tuple(
                Explaining(name=each.name, statement=each.statement)
                for each in probe.explained(got, in_pairs=unexplained < PATIENCE)
            )
            unexplained += not found
            outcome: Literal["mistaken", "unexplained"] = "mistaken" if found else "unexplained"
            told = "" if found else elements(probe.fault(got)).partition("\n")[2].partition("\n")[0]
            yield Asked(what=probe.what, outcome=outcome, mistakes=found, told=told)


def _fewest(asked: Iterable[Asked]) -> tuple[Explaining, ...]:
    """Return the fewest mistakes that explain all calls that any explains, two at once as two."""
    left = [{each.name for each in call.mistakes} for call in asked if call.mistakes]
    order = {each.name: at for at, each in enumerate(MISTAKES)}
    chosen: dict[str, None] = {}
    while left:
        names = Counter(name for call in left for name in call)
        # what explains most; of equals a single one, or one of two that is known; then the first
        best = max(
            sorted(names, key=lambda name: [order[part] for part in name.split("+")]),
            key=lambda name: (
                names[name],
                "+" not in name,
                len(chosen.keys() & {*name.split("+")}),
            ),
        )
        chosen |= dict.fromkeys(best.split("+"))
        left = [call for call in left if not any({*n.split("+")} <= chosen.keys() for n in call)]
    statements = {each.name: each.statement for each in MISTAKES}
    return tuple(Explaining(name=each, statement=statements[each]) for each in chosen)


def _unlikely(found: FunctionDiagnosis) -> tuple[int, int, int]:
    unexplained = sum(each.outcome == "unexplained" for each in found.asked)
    raised = sum(each.outcome == "raises" for each in found.asked)
    return unexplained + raised, len(found.mistakes), len(found.convention)


def _unusual(convention: Convention) -> dict[str, str]:
    """Return the fields that say what is not usual, but for promises."""
    return {
        name: str(value)
        for name, field in type(convention).model_fields.items()
        if (value := getattr(convention, name)) not in (field.default, None) and name != "promises"
    }


def _address(target: Callable[..., Any]) -> str:
    return f"{getattr(target, '__module__', '')}:{doors.plain_name(target)}"
