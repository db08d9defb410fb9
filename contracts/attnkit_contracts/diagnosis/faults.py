"""What is wrong with one call: its output, its gradients, or what it did to its inputs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from attnkit.errors import AttnkitError, UnsupportedError
from attnkit_contracts.catalogue import BrokenError, InconclusiveError
from attnkit_contracts.diagnosis import observations as experiments
from attnkit_contracts.diagnosis.observations import Fault
from attnkit_contracts.judging import outputs as judge
from attnkit_contracts.subjects.target import Reading

if TYPE_CHECKING:
    from torch import Tensor

    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.judging.outputs import Bound
    from attnkit_contracts.subjects.layers import LayerSubject
    from attnkit_contracts.subjects.subject import Subject


def fault_of(subject: Subject, call: Call) -> Fault | None:
    """Return what is wrong with a call; None for nothing, or for no way to tell.

    One that brings a ``grad_out`` is asked for its gradients, not for its output.
    """
    if "grad_out" in call.tensors:
        return _gradient_fault(subject, call)
    if not _tellable(subject, call):
        return None
    seen = experiments.observe(subject, call)
    if not experiments.is_finite(seen.plain):
        return None
    if seen.error is not None:
        return _raises(seen.error, "out")
    # a write is told where it spoils nothing: else the wrong output is
    written = next((Fault("write", name) for name in seen.written), None)
    try:
        limits = experiments.expected(subject, seen)
    except (InconclusiveError, AttnkitError):
        return written
    dtype = next(iter(call.tensors.values())).dtype
    wrong = [_fault(name, seen.got[name], limit, dtype) for name, limit in limits.items()]
    first = next((each for each in wrong if each is not None), None)
    return written if first is None else replace(first, written=seen.written)


def layer_fault(subject: LayerSubject, call: Call) -> Fault | None:
    """Return what is wrong with a call of a layer, by the definition that its variant brings."""
    with torch.no_grad():
        got = subject(call)
    return _fault("out", got, subject.judged(call)["out"], got.dtype)


def _tellable(subject: Subject, call: Call) -> bool:
    """Return whether a call has an answer: dropout shows only where values may be any width."""
    if not call.extras.get("dropout_p"):
        return True
    query, value = call.tensors["query"], call.tensors["value"]
    return subject.promises.value_width or query.shape[3] == value.shape[2]


def _shows_dropped(subject: Subject, call: Call) -> bool:
    """Return whether an output tells what dropout dropped, if it drops: of unit vectors it does."""
    if not call.extras.get("dropout_p"):
        return True
    value = call.tensors["value"]
    keys = value.shape[2]
    shown = torch.eye(keys, dtype=value.dtype, device=value.device).expand(*value.shape[:3], -1)
    return subject.steps is not None and torch.equal(value[..., :keys], shown)


def _raises(error: Exception, name: str) -> Fault | None:
    # a refusal is an answer
    if isinstance(error, UnsupportedError):
        return None
    return Fault(f"raises {type(error).__name__}", name, told=str(error))


def _fault(name: str, got: Tensor, limit: Bound, dtype: torch.dtype) -> Fault | None:
    if got.shape != limit.exact.shape:
        return Fault("shape", name, got, limit, f"{tuple(got.shape)}")
    if name == "out" and got.dtype != dtype:
        return Fault("dtype", name, got, limit, str(got.dtype))
    if not got.isfinite().all() and limit.exact.isfinite().all():
        return Fault("not finite", name, got, limit)
    fault = Fault("values", name, got, limit)
    return fault if fault.error > 1 else None


def with_grad_out(subject: Subject, call: Call) -> Call:
    """Return a call that brings the gradient of its output, too."""
    return call.given(grad_out=subject.normal("gradient", *judge.output_shape(call)))


def _gradient_fault(subject: Subject, call: Call) -> Fault | None:
    grad_out = call.arguments()["grad_out"]
    plain = call.without("grad_out").map(lambda _, tensor: tensor.detach())
    call = subject.without_padding(plain)
    if grad_out.shape != judge.output_shape(call) or not _shows_dropped(subject, call):
        return None
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            out, found = judge.with_gradients(subject, call, grad_out)
    except BrokenError as error:
        return Fault("no gradient", "gradient", told=str(error))
    # whatever a stranger's code raises is what we look for
    except Exception as error:
        return _raises(error, "gradient")
    if subject.layer is not None:
        # its float64 is its own, and routes tokens as it likes
        return None
    kept = None
    if call.extras.get("dropout_p"):
        kept = out[..., : call.tensors["value"].shape[2]] != 0
    how = Reading(None if kept is None else subject.steps, kept)
    try:
        limits = subject.bounds(call, {"out": grad_out}, how)
    except (AttnkitError, InconclusiveError, RuntimeError):
        return None
    for name, got in found.items():
        named = judge.gradient_of(name)
        fault = Fault("values", named, got, limits[named])
        if fault.error > 1:
            return fault
    return None
