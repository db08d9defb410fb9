"""S, continued: how layers may be called. Modes change nothing, wrong arguments are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

import attnkit
from attnkit.errors import AttnkitError
from attnkit.masks.constructors import Sizes
from attnkit_contracts.catalogue import BrokenError, Measured, layer_check
from attnkit_contracts.checks.calls.refusal import refusing
from attnkit_contracts.foreign.layers import is_foreign
from attnkit_contracts.inputs.calls import paddings
from attnkit_contracts.judging.outputs import agree, exactly, part, worst

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from attnkit.masks.constructors import Mask
    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.subjects.layers import LayerSubject

LENGTH = 20

MODES: dict[str, Callable[[], Any]] = {
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
}
"""Inference first: what a layer keeps of it must not spoil what comes after."""


@layer_check(
    "S11.modes",
    "F is the same under inference_mode, no_grad and enable_grad, in evaluation and, without "
    "dropout, in training: of real tokens, under every mask of padding, and in pieces.",
    verdict="R",
)
def modes(subject: LayerSubject) -> Measured:
    """Call with and without gradients, in both modes, whole and from a state."""
    fields = type(subject.config).model_fields
    plain = subject.remade(**({"dropout_p": 0.0} if "dropout_p" in fields else {}))
    call, found = plain.draw_whole("S11", length=LENGTH), []
    for what, mask, real in _paddings(plain):
        masked = call.masked(mask)
        limit = part(plain.bound(masked, probes=4), (real,))
        outputs = {way: _output(plain, masked, mode)[real] for way, mode in _ways(plain)}
        first = next(iter(outputs.values()))
        found += [
            agree(limit, first, got, f"{what}, {way}".strip(", ")) for way, got in outputs.items()
        ]
    if plain.promises.state:
        limit, wanted = plain.bound(call, probes=4), plain(call).detach()
        for way, mode in _ways(plain):
            with mode():
                got = plain.pieces(call, (7, 1, 12))
            found.append(agree(limit, wanted, got.detach(), f"in pieces, {way}"))
    return worst(found)


def _paddings(subject: LayerSubject) -> Iterator[tuple[str, Mask, Tensor]]:
    """Yield what, a mask, and which tokens are real, (B, L)."""
    counts = torch.tensor([0, 7], device=subject.device)
    padded = paddings(LENGTH, counts) if "padding" in subject.promises.masks else {}
    for way, mask in subject.plain_masks(Sizes(2, 2, LENGTH, LENGTH)).items():
        yield way, mask, torch.ones(2, LENGTH, dtype=torch.bool, device=subject.device)
        for what, (hidden, real) in padded.items():
            yield f"{way} {what}", mask & hidden, real


def _ways(subject: LayerSubject) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield each way to call the layer, which is put into training or evaluation for it."""
    # others may drop without saying so
    trained = (False,) if is_foreign(subject.target.variant) else (False, True)
    for training in trained:
        subject.layer.train(training)
        for name, mode in MODES.items():
            yield f"{name}, {'training' if training else 'evaluation'}", mode
    subject.layer.eval()


def _output(subject: LayerSubject, call: Call, mode: Callable[[], Any]) -> Tensor:
    with mode():
        out = subject(call)
    if out.requires_grad and subject.promises.gradients:
        # what a layer kept of a call before may not take part in it
        out.sum().backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
    return out.detach()


@layer_check(
    "S10.layer_arguments",
    "A layer refuses, with a message that says what came, what is no tensor, another rank, width "
    "or dtype, what is no mask, a mask of other tokens or samples, and a state of other samples or "
    "of no kind; and a keyword that it does not know.",
    plugins_only=True,
)
def layer_arguments(subject: LayerSubject) -> Measured:
    """Call with each of them."""
    call = subject.draw("S10 arguments", batch=2, length=LENGTH)
    for what, told, given in _wrong_arguments(subject, call):
        x = given.pop("x", call.tensors["x"])
        try:
            subject.layer(x, **{"mask": call.mask, **given})
        except AttnkitError as error:
            if told not in str(error):
                raise BrokenError(f"{what} is refused without saying {told}: {error}") from error
        except Exception as error:
            raise BrokenError(
                f"{what} must be refused with an error of attnkit.errors that says {told}, got "
                f"{type(error).__name__}: {error}"
            ) from error
        else:
            raise BrokenError(f"{what} is accepted in silence")
    # a layer that was made for a context takes one
    for unknown in ("context", "attn_mask", "no_such_argument"):
        with refusing(f"the keyword {unknown}", unknown, TypeError, AttnkitError):
            subject.layer(call.tensors["x"], mask=call.mask, **{unknown: call.tensors["x"]})
    return exactly(0, "accepted arguments")


def _wrong_arguments(
    subject: LayerSubject, call: Call
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield what, a word of it that the refusal must say, and the arguments."""
    x, device = call.tensors["x"], subject.device
    wide = torch.cat((x, x), -1)
    other = torch.float32 if subject.dtype == torch.float64 else torch.float64
    yield "x=None", "x", {"x": None}
    yield "x of rank 2", str(tuple(x[0].shape)), {"x": x[0]}
    yield "x of twice the width", str(tuple(wide.shape)), {"x": wide}
    yield "x of half the width", str(x.shape[-1] // 2), {"x": x[..., : x.shape[-1] // 2]}
    yield f"x in {other}", str(other).removeprefix("torch."), {"x": x.to(other)}
    yield "x of whole numbers", "int64", {"x": x.long()}
    yield "mask=None", "mask", {"mask": None}
    bare = torch.ones(LENGTH, LENGTH, dtype=torch.bool, device=device)
    yield "a tensor for a mask", "mask", {"mask": bare}
    if "padding" in subject.promises.masks:
        three = attnkit.padding(torch.tensor([3, 4, 5], device=device))
        yield "padding of three samples", "(3,)", {"mask": call.mask & three}
        if torch.device(device).type == "cpu":
            # elsewhere it is not read
            longer = attnkit.padding(torch.tensor([3, LENGTH + 1]))
            yield "padding of more tokens", str(LENGTH + 1), {"mask": call.mask & longer}
    if "documents" in subject.promises.masks:
        ids = torch.zeros(2, LENGTH + 1, dtype=torch.long, device=device)
        told, hidden = str(tuple(ids.shape)), attnkit.documents(ids)
        yield "documents of more tokens", told, {"mask": call.mask & hidden}
    if subject.promises.state:
        yield "a state of three samples", "3", {"state": subject.begin(3)}
        yield "a state of one sample", "1", {"state": subject.begin(1)}
        yield "no state for a state", "object", {"state": object()}
