"""Two named mistakes at once, asked where none alone explains a wrong output.

A mistake replaces steps of the definition; two that replace others can be made together. Those are
paired that change the output of a call at all; of those that change it alike one speaks for all.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from attnkit_contracts.definitions.mistakes.mistake import Mistake
from attnkit_contracts.diagnosis import observations as experiments
from attnkit_contracts.diagnosis.smallest import work_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from attnkit_contracts.diagnosis.observations import Observation
    from attnkit_contracts.subjects.subject import Subject

    Alike = list[tuple[Mistake[Any], Any]]
    Outputs = dict[str, Tensor]

WORK = 200_000
"""Longer calls are not asked: there are some hundred pairs."""

FAR = 0.1
"""Of the largest output: whatever is off by more is no rounding of any dtype."""


def explaining(
    subject: Subject, seen: Observation, explains: Callable[[Mistake[Any]], bool]
) -> list[Mistake[Any]]:
    """Return the pairs that explain an observed call: none, or all that change it alike."""
    if subject.steps is None or seen.kept is not None or work_of(seen.call) > WORK:
        return []
    for one, other in itertools.combinations(_telling(subject, seen), 2):
        both = _joined(subject.steps, one[0], other[0])
        if both is None or not is_near(
            experiments.outputs(subject, seen, both.definitions[0]), seen
        ):
            continue
        if explains(both):
            every = (_joined(subject.steps, *each) for each in itertools.product(one, other))
            return [each for each in every if each is not None]
    return []


def _telling(subject: Subject, seen: Observation) -> list[Alike]:
    """Return the mistakes that change the output of a call, with how, those alike together."""
    right = experiments.outputs(subject, seen)
    found: list[tuple[Outputs, Alike]] = []
    for mistake in subject.mistakes:
        for definition in mistake.definitions:
            outputs = experiments.outputs(subject, seen, definition)
            if _are_alike(outputs, right):
                continue
            known = next((alike for other, alike in found if _are_alike(outputs, other)), None)
            if known is None:
                known = []
                found.append((outputs, known))
            known.append((mistake, definition))
    return [alike for _, alike in found]


def _are_alike(one: Outputs, other: Outputs) -> bool:
    return all(
        torch.allclose(tensor, other[name], rtol=1e-9, atol=1e-12, equal_nan=True)
        for name, tensor in one.items()
    )


def is_near(outputs: Outputs, seen: Observation) -> bool:
    """Return whether an output may be a definition's: cheaper than to ask how near it is."""
    off = (outputs["out"] - seen.got["out"].double()).nan_to_num(0.0).abs()
    return float(off.amax()) <= FAR * float(outputs["out"].nan_to_num(0.0).abs().amax())


def _joined(
    right: Any, one: tuple[Mistake[Any], Any], other: tuple[Mistake[Any], Any]
) -> Mistake[Any] | None:
    """Return both mistakes as one; None where they replace the same step."""
    first, second = (
        {name: step for name, step in vars(each).items() if step is not getattr(right, name)}
        for _, each in (one, other)
    )
    if first.keys() & second.keys():
        return None
    return Mistake(
        f"{one[0].name}+{other[0].name}",
        f"{one[0].statement} and {other[0].statement}",
        (replace(right, **first, **second),),
    )
