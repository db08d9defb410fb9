"""Rules between calls of a layer, written as the few lines of Python that show one to be broken.

A layer without a definition has nothing that a single call could be compared with; what a check
found broken is a rule between calls. The lines here are both what is run to find the smallest such
call and what is written down for it: a script shows what was seen, since it is what was run.
"""

from __future__ import annotations

import contextlib
import io
import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

import attnkit
from attnkit_contracts.definitions import oracle
from attnkit_contracts.diagnosis import smallest as shrinking
from attnkit_contracts.diagnosis.scripts import layer_script, mask_source, placed
from attnkit_contracts.inputs import cuts
from attnkit_contracts.reports.diagnosis import Diagnosis, Explanation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from attnkit.masks.constructors import Mask
    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.subjects.subject import Subject

CALLS = 4
"""How many calls of a check are looked at."""

FEW = 12
"""Up to so many tokens every place is tried, beyond them every seventh, as M1 does."""


class Relation(NamedTuple):
    """A rule between calls.

    Attributes:
        rule: The id of the check that is about it.
        told: What is said of a layer that breaks it.
        lines: Show it, for a ``layer`` and its input ``x``; end in an AssertionError.
        cases: Yields what to put into both, for a call.
    """

    rule: str
    told: str
    lines: str
    cases: Callable[[Subject, Call], Iterable[Mapping[str, Any]]]

    def shown(self, subject: Subject, call: Call) -> Shown | None:
        """Return how a call breaks the rule; None if it does not."""
        said = {"mask": _said(call.mask)}
        if "{allowed}" in self.lines:
            # how far two right outputs may be apart
            limit = subject.bound(call, probes=4)
            said["allowed"] = f"{float((2 * limit.gate * limit.unit).max()):.3g}"
        for case in self.cases(subject, call):
            told = self.told.format(**case)
            lines = self.lines.strip().format(told=told, **said, **case)
            if _fails(lines, subject, call):
                return Shown(told, tuple(lines.splitlines()))
        return None


class Shown(NamedTuple):
    """How a call breaks a rule."""

    told: str
    lines: tuple[str, ...]


def explained(subject: Subject, calls: tuple[Call, ...], rule: str) -> Explanation | None:
    """Return what breaks a rule; None where it has no lines here, or no call breaks it."""
    plain = [call.map(lambda _, tensor: tensor.detach()) for call in calls[:CALLS]]
    # a context would have to be cut and written down as well
    plain = [call for call in plain if set(call.tensors) == {"x"}]
    for relation in (each for each in RELATIONS if each.rule == rule):
        for call in plain:
            shown = relation.shown(subject, call)
            if shown is not None:
                return _smallest(relation, subject, call, shown)
    return None


def _smallest(relation: Relation, subject: Subject, call: Call, shown: Shown) -> Explanation:
    def lines(other: Call) -> tuple[str, ...]:
        again = relation.shown(subject, other)
        return () if again is None else again.lines

    smallest = shrinking.shrink(subject, call, lambda other: bool(lines(other)))
    # what is not deterministic may be right the next time
    shown = relation.shown(subject, smallest) or shown
    script = layer_script(subject, smallest, lines)
    return Explanation(Diagnosis(seen=shown.told), smallest.describe(), script=script)


def _fails(lines: str, subject: Subject, call: Call) -> bool:
    """Run the lines, and return whether they end in an AssertionError."""
    x = call.tensors["x"].detach().clone()
    space = {"torch": torch, "attnkit": attnkit, "layer": subject.layer, "x": x}
    try:
        with torch.enable_grad(), contextlib.redirect_stdout(io.StringIO()):
            # lines of this module, with numbers and masks put in
            exec(lines, space)
    except AssertionError:
        return True
    # a stranger's code may raise anything else: then the lines do not show what they are about
    except Exception:
        return False
    return False


def _said(mask: Mask) -> str:
    return f", mask={mask_source(mask)}" if mask.conjuncts() else ""


def _cuts(subject: Subject, call: Call) -> Iterator[Mapping[str, Any]]:
    """Yield where to cut, see `FEW`, the token before, and the mask of all tokens before."""
    length = call.tensors["x"].shape[1]
    for place in range(1, length) if length <= FEW else range(3, length, 7):
        own = _said(cuts.tokens(call, 0, place).mask)
        yield {"t": place, "before": place - 1, "own": own}


def _samples(subject: Subject, call: Call) -> Iterator[Mapping[str, Any]]:
    batch = len(call.tensors["x"])
    if batch > 1:
        for b in range(batch):
            own = _said(cuts.samples(call, [b]).mask)
            yield {"b": b, "at": f"{b} : {b + 1}", "own": own}


def _padded(subject: Subject, call: Call) -> Iterator[Mapping[str, Any]]:
    x = call.tensors["x"]
    real = oracle.real_tokens(call.mask, x.shape[0], x.shape[1], x.device)
    if real.any() and not real.all():
        for held, number in (("1e4", "1e4"), ("NaN", 'float("nan")')):
            written = f"torch.tensor({real.tolist()}){placed(real)}"
            yield {"real": written, "held": held, "number": number}


def _documents(subject: Subject, call: Call) -> Iterator[Mapping[str, Any]]:
    marked = [part for part in call.mask.conjuncts() if part.parts == {"documents"}]
    if not marked:
        return
    rest = cuts.without(call.mask, *marked)
    x = call.tensors["x"]
    first = oracle.restarts(call.mask, x.shape[0], x.shape[1], x.device)
    for b, row in enumerate(first):
        edges = [0, *row.nonzero().flatten().tolist(), x.shape[1]]
        for start, stop in itertools.pairwise(edges):
            single = cuts.samples(call.masked(rest), [b])
            own = _said(cuts.tokens(single, start, stop).mask)
            at = f"{b} : {b + 1}, {start} : {stop}"
            yield {"b": b, "t": start, "at": at, "own": own}


def _stepwise(subject: Subject, call: Call) -> Iterator[Mapping[str, Any]]:
    x = call.tensors["x"]
    if not call.mask.conjuncts():
        yield {"batch": len(x), "length": x.shape[1]}


_SAME = """
print("one  ", one)
print("other", other)
assert torch.equal(one, other), "{told}"
"""

_NEAR = """
print("one  ", one)
print("other", other)
off = float((one - other).abs().max())
# as far as two right outputs may be apart
assert off <= {allowed}, f"{told}: off by {{off:.3g}}"
"""

RELATIONS = (
    Relation(
        "M1.suffix_perturbation",
        "outputs before token {t} move when tokens from {t} on do",
        """
later = x.clone()
later[:, {t}:] = 1 - 3 * x[:, {t}:]
one, other = layer(x{mask})[:, :{t}], layer(later{mask})[:, :{t}]"""
        + _SAME,
        _cuts,
    ),
    Relation(
        "M2.gradient_causality",
        "output {before} sends a gradient to later tokens",
        """
x.requires_grad_()
y = layer(x{mask})
(gradient,) = torch.autograd.grad(y[:, {before}].square().sum(), x)
print("gradient of output {before} to tokens from {t} on", gradient[:, {t}:])
assert not gradient[:, {t}:].any(), "{told}"
""",
        _cuts,
    ),
    Relation(
        "M9.padding_content",
        "outputs of real tokens move when padding holds {held}",
        """
real = {real}
filled = x.masked_fill(~real[..., None], {number})
one, other = layer(x{mask})[real], layer(filled{mask})[real]"""
        + _SAME,
        _padded,
    ),
    Relation(
        "M9.padding_content",
        "gradients of real tokens move when padding holds {held}",
        """
real = {real}
x.requires_grad_()
filled = x.masked_fill(~real[..., None], {number})
(one,) = torch.autograd.grad(layer(x{mask})[real].square().sum(), x)
(other,) = torch.autograd.grad(layer(filled{mask})[real].square().sum(), x)
one, other = one[real], other[real]"""
        + _SAME,
        lambda subject, call: _padded(subject, call) if subject.promises.gradients else (),
    ),
    Relation(
        "M11.packed",
        "the document from token {t} of sample {b} on gives something else alone",
        """
one, other = layer(x{mask})[{at}], layer(x[{at}]{own})"""
        + _NEAR,
        _documents,
    ),
    Relation(
        "A1.batch_independence",
        "sample {b} gives something else alone",
        """
one, other = layer(x{mask})[{at}], layer(x[{at}]{own})"""
        + _NEAR,
        _samples,
    ),
    Relation(
        "T1.prefix",
        "the first {t} tokens give something else alone",
        """
one, other = layer(x{mask})[:, :{t}], layer(x[:, :{t}]{own})"""
        + _NEAR,
        _cuts,
    ),
    Relation(
        "T2.steps",
        "token by token, with the state handed on, it gives something else",
        """
state, steps = layer.init_state({batch}), []
for i in range({length}):
    y, state = layer(x[:, i : i + 1], state=state)
    steps.append(y)
one, other = layer(x), torch.cat(steps, 1)"""
        + _NEAR,
        _stepwise,
    ),
    Relation(
        "S3.determinism",
        "the same call gives something else the second time",
        """
one, other = layer(x{mask}), layer(x{mask})"""
        + _SAME,
        lambda *_: [{}],
    ),
    Relation(
        "S5.strides",
        "equal numbers at other strides give something else",
        """
one, other = layer(x{mask}), layer(x.mT.contiguous().mT{mask})"""
        + _NEAR,
        lambda *_: [{}],
    ),
    Relation(
        "N3.central_differences",
        "the gradient is not the slope of the output",
        """
direction, h = x.roll(1, -1), 2.0**-20
with torch.no_grad():
    slope = (layer(x + h * direction{mask}) - layer(x - h * direction{mask})).sum() / (2 * h)
x.requires_grad_()
(gradient,) = torch.autograd.grad(layer(x{mask}).sum(), x)
print("slope   ", float(slope))
print("gradient", float((gradient * direction).sum()))
off = float(((gradient * direction).sum() - slope).abs())
assert off <= 1e-6 * float((gradient * direction).abs().sum()), "{told}"
""",
        lambda subject, _: [{}] if subject.dtype == torch.float64 else [],
    ),
)
"""Of the relations of a check, the first that is broken is shown."""
