"""M, continued: rows that see nothing, and what padding holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

import attnkit
from attnkit.masks.constructors import Sizes
from attnkit_contracts.catalogue import BrokenError, Measured, call_check, softmax_check
from attnkit_contracts.checks.masks.visibility import beside, masked_calls
from attnkit_contracts.foreign.layers import is_foreign
from attnkit_contracts.inputs import cuts
from attnkit_contracts.inputs.calls import PLACED, TIME_AXIS, paddings
from attnkit_contracts.judging import outputs as judge

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from attnkit.promises import Promises
    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.subjects.softmax import SoftmaxOperation
    from attnkit_contracts.subjects.subject import Subject


def can_hide_all(promises: Promises) -> bool:
    """Return whether a mask that is promised can hide every key of a row."""
    return bool({"dense", "padding"} & set(promises.masks)) or (
        promises.causal and promises.cross and not promises.needs
    )


@softmax_check(
    "M8.masked_rows",
    "A(i) = {} gives output 0, zero gradients for query i, and no gradient from row i to any key "
    "or value; all gradients are finite.",
    applies=can_hide_all,
)
def masked_rows(subject: SoftmaxOperation) -> Measured:
    """Hide every key of some rows in each way that is promised."""
    found = []
    for what, call, rows in masked_calls(subject):
        out = subject(call)
        judge.must_be_finite({"output": out}, what)
        wrong = int((out[rows] != 0).sum())
        if wrong:
            raise BrokenError(
                f"{what}: {wrong} elements of rows that see nothing are not 0", value=wrong
            )
        if subject.promises.gradients:
            _expect_no_gradient(subject, call, rows, what)
        found.append(judge.exactly(0, "wrong elements"))
    return judge.worst(found)


def _expect_no_gradient(subject: SoftmaxOperation, call: Call, rows: Tensor, what: str) -> None:
    grad_out = subject.normal("M8", *rows.shape, call.tensors["value"].shape[3])
    whole = judge.gradients(subject, call, grad_out)
    judge.must_be_finite(whole, f"{what}: gradients")
    if (whole["query"][rows] != 0).any():
        raise BrokenError(f"{what}: a query that sees nothing gets a gradient")
    alone = judge.gradients(subject, call, torch.where(rows[..., None], grad_out, 0.0))
    for name, gradient in alone.items():
        if (gradient != 0).any():
            raise BrokenError(f"{what}: rows that see nothing send a gradient to {name}")


@softmax_check(
    "M8.infinite_bias",
    "A bias of -inf hides its key as a mask does: outputs and gradients are those under the mask, "
    "and a row of nothing but -inf gives 0, and its query a gradient of 0.",
    applies=lambda promises: promises.bias,
    verdict="R",
)
def infinite_bias(subject: SoftmaxOperation) -> Measured:
    """Hide some keys of all rows, and every key of one."""
    length = 20
    call = subject.draw("M8", length=length)
    at = torch.arange(length, device=subject.device)
    hidden = ((at[:, None] + 3 * at) % 4 == 1) & (at[:, None] != at)  # (L, S)
    hidden[5] = True
    bias = subject.normal("M8 bias", 1, subject.heads, length, length)
    plain = call.given(bias=bias).masked(call.mask & attnkit.dense(~hidden))
    call = call.given(bias=bias.masked_fill(hidden, float("-inf")))
    out = subject(call)
    judge.must_be_finite({"output": out}, "bias of -inf")
    rows = (at == 5).expand(out.shape[:3])
    if (out[rows] != 0).any():
        raise BrokenError("a row whose bias is -inf everywhere is not 0")
    grads, got = {}, {}
    if subject.promises.gradients:
        grad_out = subject.normal("M8", *out.shape)
        grads, got = {"out": grad_out}, judge.gradients(subject, call, grad_out)
        if (got["query"][rows] != 0).any():
            raise BrokenError("a query whose bias is -inf everywhere gets a gradient")
    limits = subject.bounds(plain, grads)
    found = [
        judge.near(limits[judge.gradient_of(n)], got[n], f"bias of -inf: {judge.gradient_of(n)}")
        for n in got
    ]
    return judge.worst([judge.near(limits["out"], out, "bias of -inf"), *found])


HELD: tuple[tuple[float, ...], ...] = ((1e4, -1e4), (float("inf"), float("nan")))
"""What padding holds, in one call each: numbers, and what is none."""


def _filled(subject: Subject, call: Call, where: Tensor, values: Tensor) -> Call:
    """Return the call with each sample's value, (B,), in its padded tokens; decays stay legal."""

    def fill(name: str, tensor: Tensor) -> Tensor:
        if name not in TIME_AXIS or name in subject.unhidden:
            return tensor
        shape = [1] * tensor.dim()
        shape[0], shape[TIME_AXIS[name]] = where.shape
        sign = -1.0 if name == "log_decay" else 1.0
        held = (sign * values).to(tensor).reshape(-1, *[1] * (tensor.dim() - 1))
        return torch.where(where.reshape(shape), held, tensor)

    return call.map(fill)


@call_check(
    "M9.padding_content",
    "What padding holds, however large, NaN and inf included, does not move the outputs of real "
    "tokens or their gradients by one bit; of a foreign layer, NaN and inf if it promises "
    "stops_nan.",
    applies=lambda promises: "padding" in promises.masks,
)
def padding_content(subject: Subject) -> Measured:
    """Fill the padding with 1e4, -1e4, inf and NaN; samples are padded differently."""
    finite = is_foreign(subject.target.variant) and not subject.promises.stops_nan
    for what, call, where in _padded(subject):
        plain = subject(call)
        real = beside(~where, plain)
        judge.must_be_finite({"output": plain[real]}, what)
        for values in HELD[:1] if finite else HELD:
            held = torch.tensor(values, device=subject.device).repeat_interleave(3)  # (B,)
            filled = _filled(subject, call, where, held)
            out = subject(filled)
            for sample, value in enumerate(held.tolist()):
                pair = plain[sample][real[sample]], out[sample][real[sample]]
                judge.same_bits(*pair, f"real tokens, {what} holds {value}")
            if subject.promises.gradients:
                told = " and ".join(map(str, values))
                _expect_gradients(subject, filled, where, real, f"{what} holds {told}")
    return judge.exactly(0, "moved elements")


def _padded(subject: Subject) -> Iterator[tuple[str, Call, Tensor]]:
    """Yield what, a call with padding, and which of its tokens are padding, (B, L)."""
    length = 21
    call = subject.draw("M9", batch=6, length=length)
    counts = torch.tensor([0, 1, length - 1] * 2, device=subject.device)
    sizes = Sizes(6, 2, length, length)
    ways = {"": subject.mask(sizes, wide=PLACED)}
    if subject.layer is not None:
        ways = subject.plain_masks(sizes)
    for way, mask in ways.items():
        plain = subject(call.masked(mask))
        for what, (hidden, real) in paddings(length, counts).items():
            padded = call.masked(mask & hidden)
            what = f"{way} {what}".strip()
            judge.must_differ(plain, subject(padded), what)
            yield what, padded, ~real


def _expect_gradients(subject: Subject, call: Call, where: Tensor, real: Tensor, what: str) -> None:
    """Finite everywhere, and zero at padded keys and values."""
    grad_out = subject.normal("M9 grad", *judge.output_shape(call))
    found = judge.gradients(subject, call, torch.where(real[..., None], grad_out, 0.0))
    judge.must_be_finite(found, f"{what}: gradients")
    for name in ("x", "key", "value"):
        if name in found:
            # (B, ..., L, width) -> (B, L, ...)
            at_padding = found[name].movedim(TIME_AXIS[name], 1)[where]
            if (at_padding != 0).any():
                raise BrokenError(f"{what}: the padding's {name} gets a gradient")


@call_check(
    "M9.stops_nan",
    "With stops_nan: NaN or inf in a token that a mask hides, a later one say, does not move the "
    "outputs that do not see it by one bit; nor, if nothing sees it, are gradients other than "
    "finite.",
    families=("softmax", "recurrence", "mixer"),
    applies=lambda promises: promises.stops_nan,
)
def stops_nan(subject: Subject) -> Measured:
    """Put either into one token under every promised mask, and look at what must not see it."""
    length = 20
    for what, call, seen in _hidings(subject, subject.draw("M9 nan", length=length)):
        plain = subject(call)
        for place in (7, length - 1):
            where = (torch.arange(length, device=subject.device) == place).expand(2, -1)
            # what does not see itself, padding say, may be anything
            blind = ~seen[..., place] & seen.diagonal(dim1=-2, dim2=-1)  # (B, L)
            rows = beside(blind, plain)
            for value in HELD[1]:
                held = torch.tensor([value] * 2, device=subject.device)
                filled, told = _filled(subject, call, where, held), f"{what}, token {place} {value}"
                judge.same_bits(plain[rows], subject(filled)[rows], f"{told}: what does not see it")
                if subject.promises.gradients and not seen[..., place].any():
                    _expect_gradients(subject, filled, where, beside(~where, plain), told)
    return judge.exactly(0, "moved elements")


def _hidings(subject: Subject, call: Call) -> Iterator[tuple[str, Call, Tensor]]:
    """Yield what, a call under a mask, and which query sees which key, (B, L, L)."""
    sizes, causal = cuts.sizes_of(call), subject.promises.causal
    base = subject.causal(call).mask if causal else subject.mask(sizes, wide=PLACED)
    masks = {"causal": base} if causal else {}
    masks |= {part: base & subject.part(part, sizes) for part in subject.promises.masks}
    if "dense" in masks:
        nowhere = torch.ones(sizes.keys, dtype=torch.bool, device=subject.device)
        nowhere[7] = False
        masks["dense of a key that nothing sees"] = base & attnkit.dense(nowhere)
    for what, mask in masks.items():
        way = mask & attnkit.causal() if causal else mask
        seen = way.to_bool(sizes, torch.device(subject.device)).expand(*sizes).any(1)
        yield what, call.masked(mask), seen
