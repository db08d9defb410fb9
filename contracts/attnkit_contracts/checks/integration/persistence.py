"""I: what a layer computes survives saving, copying, pickling and moving."""

from __future__ import annotations

import copy
import io
import pickle
from typing import TYPE_CHECKING, Any

import torch

import attnkit
from attnkit_contracts.catalogue import BrokenError, Measured, layer_check
from attnkit_contracts.judging.outputs import exactly, must_differ, same_bits
from attnkit_contracts.subjects.layers import build, sample_options

if TYPE_CHECKING:
    from torch import Tensor

    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.subjects.layers import LayerSubject


def _output(subject: LayerSubject, layer: Any, call: Call) -> Tensor:
    with torch.no_grad():
        y: Tensor = layer(call.tensors["x"], mask=call.mask)
    return y


@layer_check(
    "I4.state_dict",
    "A fresh layer that loads another's state_dict gives what that one gives, to the bit.",
)
def state_dict(subject: LayerSubject) -> Measured:
    """Save all that the state_dict holds, and load it into a layer of other weights."""
    call = subject.draw("I4", length=24)
    wanted = _output(subject, subject.layer, call)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(subject.target.seed + 1)
        options = sample_options(subject.target.variant)
        fresh = attnkit.create(subject.target.variant, dtype=subject.dtype, **options)
    fresh = fresh.to(subject.device).eval()
    # nobody has it draw all weights at random: zeros are legal, and then nothing differs
    with torch.no_grad():
        for weight in fresh.parameters():
            weight.add_(0.125)
    must_differ(wanted, _output(subject, fresh, call), "other weights")
    file = io.BytesIO()
    torch.save(subject.layer.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file))
    same_bits(wanted, _output(subject, fresh, call), "the output after loading the state_dict")
    return exactly(0, "different elements")


@layer_check(
    "I4.copies",
    "A copy and a pickle of a layer give what it gives, to the bit, and share no weight with it.",
)
def copies(subject: LayerSubject) -> Measured:
    """Copy after a call with gradients, change the copy, and look at the original."""
    call = subject.draw("I4", length=24)
    wanted = _output(subject, subject.layer, call)
    # what a layer keeps of a call must not be part of its graph: that cannot be copied
    subject(call.leaves())
    for what, twin in (
        ("deepcopy", copy.deepcopy(subject.layer)),
        ("pickle", pickle.loads(pickle.dumps(subject.layer))),
    ):
        same_bits(wanted, _output(subject, twin, call), f"the output after {what}")
        with torch.no_grad():
            for weight in twin.parameters():
                weight.mul_(-3)
        must_differ(wanted, _output(subject, twin, call), f"changing the weights of a {what}")
        again = _output(subject, subject.layer, call)
        same_bits(wanted, again, f"the output after the weights of a {what} were changed")
    return exactly(0, "different elements")


@layer_check(
    "I4.moves",
    "A layer that is moved to a dtype gives what one that was made in it gives, to the bit; what "
    "is computed once and kept, rotary angles say, included.",
)
def moves(subject: LayerSubject) -> Measured:
    """Move a float32 layer after its first call, and to a wider dtype and back."""
    options = sample_options(subject.target.variant)
    if "rotary_base" in type(subject.config).model_fields:
        options["rotary_base"] = 10000.0
    call = subject.draw("I4", length=300)
    with torch.random.fork_rng(devices=[]):
        # in the dtype from the start, as `build` does not make it; whatever its weights are
        made = attnkit.create(subject.target.variant, dtype=subject.dtype, **options)
    made = made.to(subject.device).eval()
    moved = build(subject.target, torch.float32, **options)
    wide = call.tensors["x"].to(torch.float32)
    if "float32" in subject.promises.dtypes:
        # so that it keeps what it keeps between calls
        _output(subject, moved, call.given(x=wide))
    moved = moved.to(subject.dtype)
    made.load_state_dict(moved.state_dict())
    wanted = _output(subject, made, call)
    same_bits(wanted, _output(subject, moved, call), f"the output after .to({subject.dtype})")
    back = moved.to(torch.float64).to(subject.dtype)
    same_bits(wanted, _output(subject, back, call), "the output after .to(float64) and back")
    names = {name for name, _ in moved.named_parameters()}
    if names != {name for name, _ in made.named_parameters()}:
        raise BrokenError(f"the names of the weights change: {sorted(names)}")
    return exactly(0, "different elements")


@layer_check(
    "I4.states",
    "A copy and a pickle of a state go on as the state does, to the bit.",
    applies=lambda promises: promises.state,
)
def states(subject: LayerSubject) -> Measured:
    """Take 12 tokens, copy the state, and take 8 more."""
    call = subject.draw_whole("I4", length=20)
    with torch.no_grad():
        _, state = subject.advance(call.tokens(0, 12), subject.begin(2))
        twins = {"deepcopy": copy.deepcopy(state), "pickle": pickle.loads(pickle.dumps(state))}
        wanted, _ = subject.advance(call.tokens(12, 20), state)
        for what, twin in twins.items():
            got, _ = subject.advance(call.tokens(12, 20), twin)
            same_bits(wanted, got, f"going on from a {what} of the state")
    return exactly(0, "different elements")
