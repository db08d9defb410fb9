"""S, continued: what came before a call, and one tensor in several roles of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from attnkit.errors import UnsupportedError
from attnkit.masks.codes import decode, encode
from attnkit_contracts.catalogue import Measured, call_check, operation_check
from attnkit_contracts.checks.calls.shapes import if_taken
from attnkit_contracts.inputs import cuts
from attnkit_contracts.judging import outputs as judge
from attnkit_contracts.subjects.opener import subject_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.subjects.operations import Operation
    from attnkit_contracts.subjects.subject import Subject

LENGTH = 23
"""So that no call of another check has these shapes."""

SHARED: tuple[tuple[str, ...], ...] = (("key", "value"), ("key", "query", "value"))
TOLD: dict[tuple[str, ...], str] = {names: " is ".join(names) for names in SHARED}
"""Which tensors of a call are one, and how that is said."""


@call_check(
    "S7.remembered",
    "What is given is read anew in every call, weights of a layer and tensors of masks included: "
    "with other values at the same addresses, in other modes of autograd, and while gradients of "
    "an earlier call are still to come, each call gives what it gives alone; and what it gave, "
    "gradients included, is nobody's else.",
    verdict="R",
)
def remembered(subject: Subject) -> Measured:
    """Make calls of equal shapes that differ in all else; the first ones in inference mode."""
    first, second = _alike(subject)
    with torch.no_grad():
        before = subject(first)
        found = [_rewritten(subject, first, second)]
    if subject.promises.gradients:
        found += _gradients_in_between(subject, first, second, before)
    with torch.no_grad():
        after = subject(first)
    found.append(_agree(subject, first, before, after, "made again"))
    found += [_alone(subject, call, what) for what, call in _masked(subject)]
    if subject.layer is not None:
        found.append(_learnt(subject, first))
    return judge.worst(found)


def _alike(subject: Subject) -> tuple[Call, Call]:
    """Return two calls of the same shapes, with all options that are promised and go together.

    Both have been made in inference mode.
    """
    calls = [subject.draw(f"S7 {n}", length=LENGTH) for n in ("first", "second")]
    rich = [subject.with_options(call, f"S7 {n}") for n, call in enumerate(calls)]
    with torch.inference_mode():
        rich = [if_taken(subject, *each) for each in zip(rich, calls, strict=True)]
    other = {name: 0.8 * value for name, value in rich[1].extras.items()}
    return rich[0], rich[1].saying(**other)


def _rewritten(subject: Subject, first: Call, second: Call) -> Measured:
    """Call twice with the same tensors, in which other values lie the second time."""
    slot = first.map(lambda _, tensor: tensor.clone())
    subject(slot)
    for name, tensor in slot.tensors.items():
        tensor.copy_(second.tensors[name])
    subject.watch.forget(slot.tensors.values())
    return _alone(subject, second.given(**slot.tensors), "other values at the same addresses")


def _alone(subject: Subject, call: Call, what: str) -> Measured:
    """Compare a call with the definition, or with a layer that was made for it."""
    with torch.no_grad():
        got = subject(call)
        if subject.layer is None:
            return judge.near(subject.bound(call, probes=4), got, what)
        return _agree(subject, call, subject_of(subject.target)(call), got, what)


def _agree(subject: Subject, call: Call, one: Tensor, other: Tensor, what: str) -> Measured:
    """Compare two answers; the same bits need no unit."""
    if torch.equal(one, other):
        return judge.exactly(0, "different elements")
    return judge.agree(subject.bound(call, probes=4), one, other, what)


def _gradients_in_between(
    subject: Subject, first: Call, second: Call, before: Tensor
) -> Iterator[Measured]:
    """Make two calls before the backward pass of either; before them, the first gave that."""
    calls = first.leaves(), second.leaves()
    sent = [subject.normal(f"S7 grad {n}", *judge.output_shape(first)) for n in range(2)]
    own = judge.gradients(subject, first, sent[0])
    alone = {name: gradient.clone() for name, gradient in own.items()}
    with torch.enable_grad():
        outs = [subject(call) for call in calls]
    yield _agree(subject, first, before, outs[0].detach(), "with gradients on")
    together, _ = (
        judge.received(out, call.tensors, grad_out.to(out))
        for out, call, grad_out in zip(outs, calls, sent, strict=True)
    )
    what = "of a call, while another was made"
    yield subject.agree_gradients(first, sent[0], alone, together, what)


def _masked(subject: Subject) -> Iterator[tuple[str, Call]]:
    """Yield calls whose masks held something else when they were made before."""
    call, promises = subject.draw("S7 masks", length=LENGTH), subject.promises
    sizes = cuts.sizes_of(call)
    for part in promises.masks:
        # made anew: tensors of a mask that is needed are written to as well
        base = subject.mask(sizes, causal=not promises.bidirectional)
        mask = base & subject.part(part, sizes)
        code = encode(mask)
        if part in promises.needs or not code.tensors:
            continue
        with torch.no_grad():
            try:
                subject(call.masked(mask))
            except UnsupportedError:
                continue
        for tensor in code.tensors:
            tensor.copy_(_other(tensor))
        subject.watch.forget(code.tensors)
        # another mask, whose tensors lie where those of the first did
        yield f"another mask of {part} at the same address", call.masked(decode(*code))


def _other(tensor: Tensor) -> Tensor:
    """Return other contents of a tensor of a mask."""
    if tensor.dtype == torch.bool:
        return tensor.roll(1, -1)
    # counts of tokens by sample, or ids whose tokens stay together
    return (tensor - 3).clamp(min=1) if tensor.dim() == 1 else tensor.flip(0).clone()


def _learnt(subject: Subject, call: Call) -> Measured:
    """Change all weights in place, as an optimizer does, after a call without gradients."""
    with torch.no_grad():
        subject(call)
        for weight in subject.layer.parameters():
            weight.mul_(1.25)
        got = subject(call)
        made = subject_of(subject.target)
        made.layer.load_state_dict(subject.layer.state_dict())
        return _agree(subject, call, made(call), got, "after all weights have changed")


@operation_check(
    "S5.roles",
    "One tensor in several roles, key and value say, gives what copies of it give; its gradient "
    "is the sum of theirs.",
    verdict="R",
)
def roles(subject: Operation) -> Measured:
    """Compare with copies."""
    plain, found = subject.draw("S5 roles", length=17), list[Measured]()
    mask = subject.mask(cuts.sizes_of(plain), causal=not subject.promises.bidirectional)
    call = if_taken(subject, subject.with_options(plain, "S5 options"), plain).masked(mask)
    grad_out = subject.normal("S5 roles grad", *judge.output_shape(call))
    for names in SHARED:
        one = call.tensors[names[0]]
        apart = call.given(**dict.fromkeys(names, one))
        if subject.promises.gradients:
            found += _summed(subject, apart, names, grad_out)
        else:
            copies = apart.map(lambda _, tensor: tensor.clone())
            found.append(_agree(subject, apart, subject(copies), subject(apart), TOLD[names]))
    return judge.worst(found)


def _summed(
    subject: Operation, apart: Call, names: tuple[str, ...], grad_out: Tensor
) -> Iterator[Measured]:
    """Compare outputs and gradients of copies, and of one leaf that takes their places."""
    leaf = apart.tensors[names[0]].detach().requires_grad_()
    with torch.enable_grad():
        out = subject(apart.given(**dict.fromkeys(names, leaf)))
    got = judge.received(out, {"it": leaf}, grad_out.to(out))["it"]
    wanted, separate = judge.with_gradients(subject, apart, grad_out)
    yield _agree(subject, apart, wanted, out.detach(), TOLD[names])
    if torch.equal(got, torch.stack([separate[name] for name in names]).sum(0)):
        return
    limits = [subject.gradient_bounds(apart, {"out": grad_out})[name] for name in names]
    limit = limits[0]._replace(
        exact=torch.stack([each.exact for each in limits]).sum(0),
        unit=torch.stack([each.unit.expand_as(each.exact) for each in limits]).sum(0),
        better=None,
    )
    yield judge.near(limit, got, f"the gradient where {TOLD[names]}")
