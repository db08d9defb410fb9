"""The rules between calls, as lines that show one to be broken; `relations` runs them.

A line may name ``x`` and ``layer``, or ``call()``, the call itself; in braces stands what a case
puts in, see `cases`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attnkit_contracts.diagnosis import cases

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.subjects.subject import Subject

SILENCE = "is accepted in silence"
"""How a reason ends that is about what must be refused."""


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
    cases: Callable[[Subject, Call], Iterable[Mapping[str, Any]]] = cases.once
    applies: Callable[[Subject, str], bool] = lambda subject, _: subject.layer is not None
    is_last: bool = False


def _of_operations(subject: Subject, _: str) -> bool:
    return subject.layer is None


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
        cases.places,
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
        cases.places,
    ),
    Relation(
        ("M9.padding_content",),
        "outputs of real tokens move when padding holds {held}",
        """
real = {real}
filled = x.masked_fill(~real[..., None], {number})
one, other = layer(x{mask})[real], layer(filled{mask})[real]"""
        + _SAME,
        cases.padded,
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
        lambda subject, call: cases.padded(subject, call) if subject.promises.gradients else (),
    ),
    Relation(
        ("M11.packed",),
        "the document from token {t} of sample {b} on gives something else alone",
        """
one, other = layer(x{mask})[{at}], layer(x[{at}]{own})"""
        + _NEAR,
        cases.documents,
    ),
    Relation(
        ("A1.batch_independence",),
        "sample {b} gives something else alone",
        """
one, other = layer(x{mask})[{at}], layer(x[{at}]{own})"""
        + _NEAR,
        cases.samples,
    ),
    Relation(
        ("T1.prefix",),
        "the first {t} tokens give something else alone",
        """
one, other = layer(x{mask})[:, :{t}], layer(x[:, :{t}]{own})"""
        + _NEAR,
        cases.places,
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
        cases.stepwise,
    ),
    Relation(
        ("S3.determinism",),
        "the same call gives something else the second time",
        """
one, other = layer(x{mask}), layer(x{mask})"""
        + _SAME,
        cases.once,
    ),
    Relation(
        ("S5.strides",),
        "equal numbers at other strides give something else",
        """
one, other = layer(x{mask}), layer(x.mT.contiguous().mT{mask})"""
        + _NEAR,
        cases.once,
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
        cases.modes,
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
        cases.copied,
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
        cases.copied,
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
        cases.loaded,
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
        cases.halves,
    ),
    Relation(
        ("T4.layer_state",),
        "the state after {t} tokens is changed by going on from it",
        """
with torch.no_grad():
    _, state = layer(x[:, :{t}], state=layer.init_state({batch}))
    one, other = layer(x[:, {t}:], state=state)[0], layer(x[:, {t}:], state=state)[0]"""
        + _SAME,
        cases.halves,
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
        cases.reordered,
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
        cases.cut_back,
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
        cases.stepped,
    ),
)
"""Of the relations of a check, the first that is broken is shown."""
