"""S, continued: what is around a call. Modes of autograd, layouts of memory, a process's state."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from attnkit.errors import UnsupportedError
from attnkit_contracts.catalogue import BrokenError, Measured, call_check, operation_check
from attnkit_contracts.inputs import layouts
from attnkit_contracts.instruments.process_state import changes, process_state, unusual
from attnkit_contracts.judging import outputs as judge

if TYPE_CHECKING:
    from collections.abc import Iterator

    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.subjects.operations import Operation
    from attnkit_contracts.subjects.subject import Subject

MODES = {
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "enable_grad, without an input that requires one": torch.enable_grad,
}


@call_check(
    "S2.process_state",
    "A call without dropout, forward and backward, leaves what a process keeps for all its code as "
    "it was: random numbers, default dtype, precision of products, threads, modes, warnings.",
)
def process_state_kept(subject: Subject) -> Measured:
    """Compare snapshots; the first call, which chooses an implementation, counts too."""
    call = subject.draw("S2", length=5)
    grad_out = torch.ones(judge.output_shape(call), dtype=subject.dtype, device=subject.device)
    with unusual(), torch.no_grad():
        before = process_state()
        subject(call)
        changed = changes(before)
    with unusual():
        before = process_state()
        if subject.promises.gradients:
            judge.gradients(subject, call, grad_out)
        changed += changes(before)
    if changed:
        raise BrokenError(f"a call changes {', '.join(changed)}")
    return judge.exactly(0, "changes")


@operation_check(
    "S11.grad_modes",
    "r <= gate for outputs and states under inference_mode, no_grad and enable_grad, whether an "
    "input requires a gradient or not, without options and with all that are promised.",
    tier="standard",
    verdict="R",
)
def grad_modes(subject: Operation) -> Measured:
    """Compare with the definition; inference first, as what is kept of it may spoil the rest."""
    found = []
    for options, call in _calls(subject):
        limits = subject.bounds(call)
        ways = [(name, mode, call) for name, mode in MODES.items()]
        if subject.promises.gradients:
            ways.append(("inputs that require gradients", torch.enable_grad, call.leaves()))
        for way, mode, given in ways:
            with mode():
                got = subject.outputs(given)
            found += [
                judge.near(limits[n], got[n].detach(), f"{judge.told(n)}, {way}{options}")
                for n in got
            ]
    return judge.worst(found)


def _calls(subject: Operation) -> Iterator[tuple[str, Call]]:
    """Yield a plain call, and one with all options that are promised, if they go together."""
    plain = subject.draw("S11", length=20)
    yield "", plain
    rich = subject.with_options(plain, "S11 options")
    try:
        subject(rich)
    except UnsupportedError:
        return
    yield ", with options", rich


@operation_check(
    "S5.layouts",
    "Outputs and gradients are those of contiguous inputs where query, key and value are views of "
    "one packed tensor (B, L, 3, H, E), where heads lie inside tokens, and where one input alone "
    "is transposed; outputs too where one head is expanded to all.",
    tier="standard",
    verdict="R",
)
def input_layouts(subject: Subject) -> Measured:
    """Compare with contiguous copies of equal values."""
    call = subject.draw("S5", length=17)
    limit, wanted = subject.bound(call), subject(call)
    grad_out = subject.normal("S5 grad", *judge.output_shape(call))
    with_gradients = subject.promises.gradients
    whole = judge.gradients(subject, call, grad_out) if with_gradients else {}
    found = []
    ways: list[layouts.Layout] = [layouts.PACKED, layouts.TOKENS_FIRST]
    ways += [layouts.alone(name) for name, each in call.tensors.items() if each.dim() >= 3]
    for layout in ways:
        laid = call.laid(layout)
        found.append(judge.agree(limit, wanted, subject(laid), layout.name))
        if with_gradients:
            got = judge.gradients(subject, laid, grad_out)
            found.append(subject.agree_gradients(call, grad_out, whole, got, layout.name))
    alike = call.map(lambda _, t: t[:, :1].expand_as(t).contiguous() if t.dim() >= 3 else t)
    limit, wanted = subject.bound(alike), subject(alike)
    expanded = subject(alike.laid(layouts.ONE_HEAD))
    return judge.worst([*found, judge.agree(limit, wanted, expanded, layouts.ONE_HEAD.name)])
