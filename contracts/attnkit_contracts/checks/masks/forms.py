"""M, continued: a mask means the same in every form, shape and company; gradients look back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

import attnkit
from attnkit.masks.constructors import Sizes
from attnkit.promises import ALL_MASK_PARTS
from attnkit_contracts.catalogue import (
    BrokenError,
    InconclusiveError,
    Measured,
    check,
    mixing_check,
    softmax_check,
)
from attnkit_contracts.checks.masks.visibility import expect_visible, telling_call, visible
from attnkit_contracts.inputs.calls import normal
from attnkit_contracts.judging import outputs as judge

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from attnkit.masks.constructors import Mask
    from attnkit.promises import MaskPart, Promises
    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.subjects.softmax import SoftmaxOperation
    from attnkit_contracts.subjects.subject import Subject

LENGTH = 33
"""No multiple of 8: masks with such rows are padded by some kernels."""

PROBES = 2
"""Few, for many calls; what is near the gate is judged by more."""

COMPOSED: tuple[MaskPart, ...] = ("window", "documents", "dense")
"""Parts of the mask that is written in several forms."""


@mixing_check(
    "M2.gradient_causality",
    "For every t: the gradient of output t to every later token is exactly 0.",
    applies=lambda promises: promises.causal and promises.gradients,
)
def gradient_causality(subject: Subject) -> Measured:
    """Send a random gradient into one token at a time."""
    length = 70
    call = subject.draw("M2", batch=1, length=length).leaves()
    call = subject.causal(call)
    name = "x" if "x" in call.tensors else "value"
    reaches = False
    for t in (0, 16, 35, 63):
        with torch.enable_grad():
            out = subject(call)
        grad_out = torch.zeros_like(out)
        drawn = subject.normal(f"M2 {t}", *out[..., t, :].shape)
        grad_out[..., t, :] = subject.cast(drawn)
        (found,) = torch.autograd.grad(out, [call.tensors[name]], grad_out)
        reached = (found != 0).movedim(-2, -1).flatten(0, -2).any(0)  # (L,)
        # other maths may give some of them no weight
        reaches = reaches or bool(reached[: t + 1].any())
        later = reached[t + 1 :].nonzero()
        if len(later):
            j = t + 1 + int(later[0])
            raise BrokenError(f"output {t} sends a gradient to {name} {j}, which is later")
    if not reaches:
        raise InconclusiveError(f"no output depends on any {name}")
    return judge.exactly(0, "gradients to later tokens")


def _forms(promises: Promises) -> Iterator[Mapping[str, Any]]:
    """Yield the ways to write a mask that are promised."""
    if "dense" in promises.masks:
        yield {"form": "dense"}
        yield {"form": "polarity"}
    if promises.bias:
        yield {"form": "bias of -inf"}
        yield {"form": "bias of the smallest number"}


@softmax_check(
    "M6.mask_forms",
    "A mask gives the same whether it is composed of parts, a bool tensor (True = may attend), or "
    "added to the logits as -inf or the smallest number; its negation does not.",
    cases=_forms,
    verdict="R",
)
def mask_forms(subject: SoftmaxOperation, form: str) -> Measured:
    """Compare every form with the definition of the composed mask."""
    sizes = Sizes(2, subject.heads, LENGTH, LENGTH)
    base = subject.mask(sizes, wide=ALL_MASK_PARTS)
    call = subject.draw("M6", length=LENGTH, mask=base)
    parts: list[MaskPart] = [part for part in COMPOSED if part in subject.promises.masks]
    composed = base
    for part in parts or list(COMPOSED[-1:]):
        composed = composed & subject.part(part, sizes)
    limit = subject.bound(call.masked(composed))
    seen = composed.to_bool(sizes, torch.device(subject.device)).expand(*sizes)
    if form == "polarity":
        hidden = subject(call.masked(base & attnkit.dense(~seen)))
        shown = subject(call.masked(base & attnkit.dense(seen)))
        judge.must_differ(limit.exact, subject.bound(call).exact, "the mask, in the definition,")
        if torch.equal(hidden, shown):
            raise BrokenError("a mask and its negation give the same")
        return judge.near(limit, shown, form)
    if form == "dense":
        written = call.masked(base & attnkit.dense(seen))
    else:
        least = float("-inf") if form.endswith("inf") else torch.finfo(subject.dtype).min
        bias = torch.zeros(tuple(sizes), dtype=subject.dtype, device=subject.device)
        written = call.given(bias=bias.masked_fill(~seen, least))
    found = [judge.near(limit, subject(written), form)]
    if form == "dense" and parts:
        found.append(judge.near(limit, subject(call.masked(composed)), "composed of parts"))
    return judge.worst(found)


def _shapes(sizes: Sizes) -> Iterator[tuple[int, ...]]:
    """Yield the shapes that broadcast to (B, H, L, S)."""
    batch, heads, queries, keys = sizes
    yield from ((keys,), (1, keys), (queries, keys), (1, queries, keys), (heads, queries, keys))
    yield from ((1, 1, queries, keys), (batch, 1, 1, keys), (batch, 1, queries, keys))
    yield from ((1, heads, 1, keys), tuple(sizes))


@check(
    "M7.broadcast",
    "A bool mask or a bias of any shape that broadcasts to (B, H, L, S) gives what it gives "
    "written out, forward and backward, expanded views among them.",
    families=("softmax",),
    applies=lambda promises: promises.bias or "dense" in promises.masks,
    cases=lambda promises: [
        {"given": given}
        for given, promised in (("mask", "dense" in promises.masks), ("bias", promises.bias))
        if promised
    ],
    verdict="R",
)
def broadcast(subject: SoftmaxOperation, given: str) -> Measured:
    """Compare every shape with the definition, whose mask or bias is written out."""
    sizes = Sizes(2, subject.heads, LENGTH - 2, LENGTH if subject.promises.cross else LENGTH - 2)
    base = subject.mask(sizes, wide=ALL_MASK_PARTS)
    call = subject.draw("M7", length=sizes.queries, keys=sizes.keys, mask=base)
    draw = subject.random("M7 values")
    found: list[Measured] = []
    for shape in _shapes(sizes):
        numbers, where = normal(draw, *shape), f"{given} {shape}"
        plain = (numbers > -1).to(subject.device) if given == "mask" else subject.cast(numbers)
        expanded = plain.expand(*sizes)
        limit = subject.bound(_with(call, expanded.contiguous()), PROBES)
        # written out, it can only lie in memory otherwise
        columns = plain.mT.contiguous().mT if expanded.shape == plain.shape else expanded
        for view, what in ((plain, where), (columns, f"{where}, another view")):
            found.append(judge.near(limit, subject(_with(call, view)), what))
        if given == "bias" and subject.promises.gradients:
            biased = _with(call, plain)
            grad_out = subject.normal("M7 grad", *judge.output_shape(biased))
            wanted = subject.gradient_bounds(biased, {"out": grad_out}, PROBES)["bias"]
            got = judge.gradients(subject, biased, grad_out)["bias"]
            found.append(judge.near(wanted, got, f"gradient of {where}"))
    return judge.worst(found)


def _with(call: Call, given: Tensor) -> Call:
    """Return the call with a bool mask as well, or with a bias."""
    if given.dtype == torch.bool:
        return call.masked(call.mask & attnkit.dense(given))
    return call.given(bias=given)


def together(promises: Promises) -> Iterator[Mapping[str, Any]]:
    """Yield all promised parts that hide something, with and without later keys."""
    for way in ("causal", "bidirectional"):
        parts = [
            part
            for part in promises.masks
            # a prefix shows nothing beside causal; a union is made of the others
            if part not in (*promises.needs, "union") and not (part == "prefix" and way == "causal")
        ]
        if getattr(promises, way) and len(parts) + (way == "causal") > 1:
            yield {"mask": "+".join((way, *parts))}


@softmax_check(
    "M12.composition",
    "Masks joined by & show the intersection of what each shows, and each of them alone hides "
    "something that the others do not.",
    cases=together,
)
def composition(subject: SoftmaxOperation, mask: str) -> Measured:
    """Join all parts that are promised; then leave out one at a time."""
    way, *names = mask.split("+")
    sizes = Sizes(2, subject.heads, 40, 40)
    device = torch.device(subject.device)
    parts = {name: wide(name, sizes, subject.device) for name in names}
    base = subject.mask(sizes, causal=way == "causal", wide=ALL_MASK_PARTS)
    joined, wanted = base, base.to_bool(sizes, device).expand(*sizes)
    for part in parts.values():
        joined, wanted = joined & part, wanted & part.to_bool(sizes, device)
    told = telling_call(subject, sizes)
    shown = visible(subject, told, joined)
    expect_visible(shown, wanted, mask)
    for name in parts:
        others = base
        for other, part in parts.items():
            others = others if other == name else others & part
        if bool((others.to_bool(sizes, device).expand(*sizes) == wanted).all()):
            raise InconclusiveError(f"{name} hides nothing that the others show")
        if torch.equal(visible(subject, told, others), shown):
            raise BrokenError(f"{mask}: {name} is ignored beside the others")
    return judge.exactly(0, "wrong pairs")


def wide(part: str, sizes: Sizes, device: str) -> Mask:
    """Return a mask that hides little, so that each of several hides something of its own."""
    batch, _, queries, keys = sizes
    name: MaskPart = part  # type: ignore[assignment]  # a name of a mask part
    i = torch.arange(queries, device=device)[:, None] + keys - queries
    j = torch.arange(keys, device=device)
    match name:
        case "window":
            return attnkit.sliding_window(keys - 12)
        case "padding":
            return attnkit.padding(torch.tensor([keys - 3] * batch, device=device))
        case "documents":
            return attnkit.documents((j >= 8).long().expand(batch, keys))
        case "prefix":
            return attnkit.prefix_lm(torch.tensor([keys - 10] * batch, device=device))
        case "dense":
            return attnkit.dense(((i + 2 * j) % 7 > 0) | (i == j))
        case _:
            size = 8
            row = torch.arange(-(-keys // size), device=device)
            return attnkit.blocks((row[:, None] - row) % 3 < 2, size)
