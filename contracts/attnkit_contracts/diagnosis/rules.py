"""The rules between calls, as lines that show one to be broken; `relations` runs them.

A line may name ``x`` and ``layer``, or ``call()``, the call itself; in braces stands what a case
puts in.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attnkit_contracts.definitions import oracle
from attnkit_contracts.diagnosis.scripts import made_lines, mask_source, placed, whereabouts
from attnkit_contracts.inputs import cuts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from attnkit.masks.constructors import Mask
    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.subjects.subject import Subject

FEW = 12
"""Up to so many tokens every place is tried, beyond them every seventh, as M1 does."""

SILENCE = "is accepted in silence"
"""How a reason ends that is about what must be refused."""


def once(*_: object) -> Iterable[Mapping[str, Any]]:
    """Return one case that puts nothing in."""
    return ({},)


@dataclass(frozen=True)
class Relation:
    """A rule between calls.

    Attributes:
        rules: The ids of the checks that are about it.
        told: What is said of a subject that breaks it.
        lines: Show it; end in an AssertionError.
        cases: Yields what to put into both, for a call.
        applies: Whether it is about this subject, and this reason of a failure.
        is_last: Whether the last call of a check is the one that breaks it.
    """

    rules: tuple[str, ...]
    told: str
    lines: str
    cases: Callable[[Subject, Call], Iterable[Mapping[str, Any]]] = once
    applies: Callable[[Subject, str], bool] = lambda subject, _: subject.layer is not None
    is_last: bool = False


def _of_operations(subject: Subject, _: str) -> bool:
    return subject.layer is None


def said(mask: Mask) -> str:
    """Return the mask as an argument, behind others; nothing for none."""
    return f", mask={mask_source(mask)}" if mask.conjuncts() else ""


def _cuts(subject: Subject, call: Call) -> Iterator[Mapping[str, Any]]:
    """Yield where to cut, see `FEW`, the token before, and the mask of all tokens before."""
    length = call.tensors["x"].shape[1]
    for place in range(1, length) if length <= FEW else range(3, length, 7):
        own = said(cuts.tokens(call, 0, place).mask)
        yield {"t": place, "before": place - 1, "own": own}


def _samples(subject: Subject, call: Call) -> Iterator[Mapping[str, Any]]:
    batch = len(call.tensors["x"])
    if batch > 1:
        for b in range(batch):
            own = said(cuts.samples(call, [b]).mask)
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
            own = said(cuts.tokens(single, start, stop).mask)
            at = f"{b} : {b + 1}, {start} : {stop}"
            yield {"b": b, "t": start, "at": at, "own": own}


def _stepwise(subject: Subject, call: Call) -> Iterator[Mapping[str, Any]]:
    x = call.tensors["x"]
    if not call.mask.conjuncts():
        yield {"batch": len(x), "length": x.shape[1]}


def _halves(subject: Subject, call: Call) -> Iterator[Mapping[str, Any]]:
    """Yield where to cut a call without a mask in two."""
    batch, length, _ = call.tensors["x"].shape
    if subject.promises.state and not call.mask.conjuncts() and length > 1:
        yield from ({"batch": batch, "t": t} for t in dict.fromkeys((length // 2, length - 1, 1)))


def _cut_back(subject: Subject, call: Call) -> Iterator[Mapping[str, Any]]:
    yield from _halves(subject, call) if subject.promises.truncate else ()


def _reordered(subject: Subject, call: Call) -> Iterator[Mapping[str, Any]]:
    several = len(call.tensors["x"]) > 1 and subject.promises.reorder
    yield from _halves(subject, call) if several else ()


def _copied(subject: Subject, _: Call) -> Iterator[Mapping[str, Any]]:
    for way, twin in (("deepcopy", "copy.deepcopy"), ("pickle", "pickle.loads(pickle.dumps")):
        yield {"way": way, "twin": f"{twin}(layer)" + ")" * twin.count("(")}


def _loaded(subject: Subject, _: Call) -> Iterator[Mapping[str, Any]]:
    where = whereabouts(subject.target.variant)
    if where is not None:
        yield {"fresh": "\n".join(made_lines(subject, where, name="fresh", seed=1))}


def _modes(subject: Subject, call: Call) -> Iterator[Mapping[str, Any]]:
    leaves = "\n".join(f"{name}.requires_grad_()" for name in call.tensors)
    yield from ({"mode": mode, "leaves": leaves} for mode in ("no_grad", "inference_mode"))


def _stepped(subject: Subject, call: Call) -> Iterator[Mapping[str, Any]]:
    """Yield the mask of the tokens so far, for a mask that says which tokens belong together."""
    parts, written = call.mask.conjuncts(), []
    for part in parts:
        if part.parts == {"documents"}:
            written.append(f"attnkit.documents(torch.tensor({part.ids.tolist()})[:, : i + 1])")  # type: ignore[attr-defined]  # of documents
        elif getattr(part, "starts", None) is not None:
            starts = part.starts.tolist()  # type: ignore[attr-defined]  # of padding
            written.append(f"attnkit.left_padding(torch.tensor({starts}).clamp(max=i + 1))")
    if written and len(written) == len(parts):
        x = call.tensors["x"]
        real = oracle.real_tokens(call.mask, x.shape[0], x.shape[1], x.device)
        yield {
            "batch": len(x),
            "length": x.shape[1],
            "growing": " & ".join(written),
            "real": f"torch.tensor({real.tolist()}){placed(real)}",
        }


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
        ("M1.suffix_perturbation",),
        "outputs before token {t} move when tokens from {t} on do",
        """
later = x.clone()
later[:, {t}:] = 1 - 3 * x[:, {t}:]
one, other = layer(x{mask})[:, :{t}], layer(later{mask})[:, :{t}]"""
        + _SAME,
        _cuts,
    ),
    Relation(
        ("M2.gradient_causality",),
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
        ("M9.padding_content",),
        "outputs of real tokens move when padding holds {held}",
        """
real = {real}
filled = x.masked_fill(~real[..., None], {number})
one, other = layer(x{mask})[real], layer(filled{mask})[real]"""
        + _SAME,
        _padded,
    ),
    Relation(
        ("M9.padding_content",),
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
        ("M11.packed",),
        "the document from token {t} of sample {b} on gives something else alone",
        """
one, other = layer(x{mask})[{at}], layer(x[{at}]{own})"""
        + _NEAR,
        _documents,
    ),
    Relation(
        ("A1.batch_independence",),
        "sample {b} gives something else alone",
        """
one, other = layer(x{mask})[{at}], layer(x[{at}]{own})"""
        + _NEAR,
        _samples,
    ),
    Relation(
        ("T1.prefix",),
        "the first {t} tokens give something else alone",
        """
one, other = layer(x{mask})[:, :{t}], layer(x[:, :{t}]{own})"""
        + _NEAR,
        _cuts,
    ),
    Relation(
        ("T2.steps", "T7.option_steps"),
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
        ("S3.determinism",),
        "the same call gives something else the second time",
        """
one, other = layer(x{mask}), layer(x{mask})"""
        + _SAME,
        once,
    ),
    Relation(
        ("S5.strides",),
        "equal numbers at other strides give something else",
        """
one, other = layer(x{mask}), layer(x.mT.contiguous().mT{mask})"""
        + _NEAR,
        once,
    ),
    Relation(
        ("N4.parameters",),
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
        lambda subject, _: [{}] if subject.target.dtype == "float64" else [],
    ),
    Relation(
        (
            "S10.refused",
            "S10.recurrence_refused",
            "S10.masks",
            "S10.decays",
            "S10.needs",
            "S10.heads",
            "S10.dtypes",
        ),
        "{reason}",
        """
{call}
try:
    got = call()
except attnkit.errors.UnsupportedError as refusal:
    print("refused:", refusal)
else:
    print("got", got)
    raise AssertionError("{told}")
""",
        applies=lambda _, reason: reason.endswith(SILENCE),
        is_last=True,
    ),
    Relation(
        ("S3.determinism",),
        "the same call gives something else the second time",
        """
{call}
one, other = call(), call()"""
        + _SAME,
        applies=_of_operations,
    ),
    Relation(
        ("N5.autocast_operation",),
        "the output under autocast is not the one without",
        """
{call}
one = call()
with torch.autocast("{device}", torch.bfloat16):
    other = call()"""
        + _SAME,
        applies=_of_operations,
    ),
    Relation(
        ("S11.grad_modes", "S11.modes"),
        "under {mode} the output is another than with gradients",
        """
{call}
with torch.{mode}():
    one = call()
{leaves}
other = call().detach()
one = one.clone()"""
        + _NEAR,
        _modes,
        applies=lambda *_: True,
    ),
    Relation(
        ("I4.copies",),
        "a {way} of the layer gives something else",
        """
import copy, pickle
with torch.no_grad():
    one, other = layer(x{mask}), {twin}(x{mask})"""
        + _SAME,
        _copied,
    ),
    Relation(
        ("I4.copies",),
        "a {way} of the layer shares weights with it",
        """
import copy, pickle
twin = {twin}
with torch.no_grad():
    one = layer(x{mask})
    for weight in twin.parameters():
        weight.mul_(2)
    other = layer(x{mask})
    for weight in twin.parameters():
        weight.mul_(0.5)"""
        + _SAME,
        _copied,
    ),
    Relation(
        ("I4.state_dict",),
        "a fresh layer that loads the state_dict gives something else",
        """
{fresh}
fresh.load_state_dict(layer.state_dict())
with torch.no_grad():
    one, other = layer(x{mask}), fresh(x{mask})"""
        + _SAME,
        _loaded,
    ),
    Relation(
        ("I4.states",),
        "a copy of the state after {t} tokens goes on with something else",
        """
import copy
with torch.no_grad():
    _, state = layer(x[:, :{t}], state=layer.init_state({batch}))
    twin = copy.deepcopy(state)
    one, other = layer(x[:, {t}:], state=state)[0], layer(x[:, {t}:], state=twin)[0]"""
        + _SAME,
        _halves,
    ),
    Relation(
        ("T4.layer_state",),
        "the state after {t} tokens is changed by going on from it",
        """
with torch.no_grad():
    _, state = layer(x[:, :{t}], state=layer.init_state({batch}))
    one, other = layer(x[:, {t}:], state=state)[0], layer(x[:, {t}:], state=state)[0]"""
        + _SAME,
        _halves,
    ),
    Relation(
        ("T4.layer_state",),
        "samples whose states after {t} tokens are exchanged go on with something else",
        """
with torch.no_grad():
    _, state = layer(x[:, :{t}], state=layer.init_state({batch}))
    swapped = torch.arange({batch}).flip(0)
    one = layer(x[:, {t}:], state=state)[0][swapped]
    other, _ = layer(x[swapped, {t}:], state=state.reorder(swapped))"""
        + _NEAR,
        _reordered,
    ),
    Relation(
        ("T4.layer_state", "T4.truncate"),
        "a state that is cut back to {t} tokens goes on with something else",
        """
with torch.no_grad():
    _, state = layer(x[:, :{t}], state=layer.init_state({batch}))
    one, longer = layer(x[:, {t}:], state=state)
    other, _ = layer(x[:, {t}:], state=longer.truncate({t}))"""
        + _NEAR,
        _cut_back,
    ),
    Relation(
        ("T7.masked_steps",),
        "token by token, each under the mask of the tokens so far, it gives something else",
        """
state, steps = layer.init_state({batch}), []
for i in range({length}):
    y, state = layer(x[:, i : i + 1], mask={growing}, state=state)
    steps.append(y)
real = {real}
one, other = layer(x{mask})[real], torch.cat(steps, 1)[real]"""
        + _NEAR,
        _stepped,
    ),
)
"""Of the relations of a check, the first that is broken is shown."""
