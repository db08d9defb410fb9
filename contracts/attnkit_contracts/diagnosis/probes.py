"""Small calls that show one thing each, with what the definition and its mistakes give for them.

What they give does not depend on how a function is called; so it is computed once for all ways.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import attnkit
from attnkit_contracts.diagnosis import pairs
from attnkit_contracts.diagnosis.observations import CLEARLY, Fault, Observation
from attnkit_contracts.inputs import cuts
from attnkit_contracts.judging import outputs as judge
from attnkit_contracts.subjects.target import Reading

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from attnkit.promises import Promises
    from attnkit_contracts.definitions.mistakes.mistake import Mistake
    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.subjects.softmax import SoftmaxOperation

LENGTH = 20


class Probe:
    """One call.

    Attributes:
        what: It shows.
        call: Itself.
        needs: The promises without which it is not made.
    """

    def __init__(
        self, subject: SoftmaxOperation, what: str, call: Call, needs: frozenset[str]
    ) -> None:
        self.subject, self.what, self.call, self.needs = subject, what, call, needs

    def is_asked(self, promises: Promises) -> bool:
        """Return whether a function that promises this is asked."""
        masks = {*promises.masks}
        return all(each in masks or bool(getattr(promises, each, False)) for each in self.needs)

    def fault(self, got: Tensor, rules: Any = None) -> Fault:
        """Return an output beside what a definition gives."""
        how = Reading(self.subject.steps if rules is None else rules)
        return Fault("", "out", got, self.subject.bounds(self.call, how=how)["out"])

    def error(self, got: Tensor, rules: Any = None) -> float:
        """Return how far an output is from what a definition gives, in gates."""
        return self.fault(got, rules).error

    def explained(self, got: Tensor, *, in_pairs: bool) -> list[Mistake[Any]]:
        """Return the mistakes that give an output; where none alone does, two at once if asked."""
        if got.shape != judge.output_shape(self.call):
            return []
        seen, right = Observation(self.call, self.call, {"out": got}), self.error(got)

        def explains(mistake: Mistake[Any]) -> bool:
            wrong = min(self.error(got, each) for each in mistake.definitions)
            return wrong <= 1 < right and wrong * CLEARLY <= right

        likely = [
            replace(mistake, definitions=near)
            for mistake, outputs in self._mistaken
            if (near := tuple(each for each, out in outputs if pairs.is_near({"out": out}, seen)))
        ]
        single = [each for each in likely if explains(each)]
        if single or not in_pairs:
            return single
        return pairs.explaining(self.subject, seen, explains)

    @functools.cached_property
    def _mistaken(self) -> list[tuple[Mistake[Any], list[tuple[Any, Tensor]]]]:
        return [
            (
                mistake,
                [(each, self.subject.definition(self.call, each)(self.call.tensors)["out"])
                 for each in mistake.definitions],
            )
            for mistake in self.subject.mistakes
        ]  # fmt: skip


def probes(subject: SoftmaxOperation) -> Iterator[Probe]:
    """Yield them, the plainest first."""
    draw = functools.partial(subject.draw, "diagnose", length=LENGTH)
    full, causal = attnkit.full(), attnkit.causal()

    def probe(what: str, call: Call, *needs: str) -> Probe:
        return Probe(subject, what, call, frozenset(needs))

    yield probe("plain", draw(width=20, mask=full), "bidirectional")
    yield probe("causal, L = S", draw(width=20, mask=causal), "causal")
    for queries, how in ((7, "L < S"), (26, "L > S"), (1, "L = 1")):
        longer = subject.draw("diagnose", length=queries, keys=LENGTH, mask=causal)
        yield probe(f"causal, {how}", longer, "causal", "cross")
    across = subject.draw("diagnose", length=7, keys=LENGTH, mask=full)
    yield probe("L < S", across, "bidirectional", "cross")
    for part in ("dense", "padding", "window"):
        for way, mask in (("bidirectional", full), ("causal", causal)):
            call = draw(mask=full)
            told = f"{part} mask" if way == "bidirectional" else f"{part} mask and causal"
            sizes = cuts.sizes_of(call)
            yield probe(told, call.masked(mask & subject.part(part, sizes)), way, part)
    for way, mask in (("bidirectional", full), ("causal", causal)):
        yield probe(f"Hkv < H, {way}", draw(heads=4, kv_heads=2, mask=mask), way, "gqa")
        yield probe(f"Ev != E, {way}", draw(value_width=24, mask=mask), way, "value_width")
        plain = draw(mask=mask)
        for names in (("scale",), ("softcap",), ("bias",), ("bias", "softcap"), ("sinks",)):
            told = f"{' and '.join(names)}, {way}"
            yield probe(told, subject.beside(plain, names, "diagnose"), way, *names)
    # some mistakes begin where there are several blocks of keys
    yield probe("90 keys", subject.draw("diagnose", length=90, mask=full), "bidirectional")
    yield probe("90 keys, causal", subject.draw("diagnose", length=90, mask=causal), "causal")
