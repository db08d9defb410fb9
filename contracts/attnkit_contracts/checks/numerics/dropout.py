"""N, continued: dropout drops in training alone, the right share, and the same share backward."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

import attnkit
from attnkit import precision
from attnkit.masks.constructors import Sizes
from attnkit.promises import ALL_MASK_PARTS
from attnkit_contracts.catalogue import BrokenError, Measured, layer_check, softmax_check
from attnkit_contracts.checks.masks.visibility import beside
from attnkit_contracts.inputs.calls import showing_weights
from attnkit_contracts.judging import units
from attnkit_contracts.judging.outputs import Bound, exactly, near, received, same_bits, worst
from attnkit_contracts.subjects.layers import build
from attnkit_contracts.subjects.softmax import OPTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from attnkit.promises import Promises
    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.subjects.layers import LayerSubject
    from attnkit_contracts.subjects.softmax import SoftmaxOperation
    from attnkit_contracts.subjects.subject import Subject

SHARE = 0.25
MUCH = 0.7
KEYS = 24


def seeded(subject: Subject, call: Call, seed: int) -> Tensor:
    """Return the output, with torch's own random numbers begun at a seed."""
    devices = [subject.device] if subject.device.startswith("cuda") else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        return subject(call)


@layer_check(
    "N6.modes",
    "A layer drops nothing in evaluation; in training two calls differ, and two calls from the "
    "same seed do not; that stays so after an evaluation.",
    applies=lambda promises: promises.dropout,
    fields=("dropout_p",),
    required=True,
)
def modes(subject: LayerSubject) -> Measured:
    """Go from evaluation to training and back, twice."""
    call = subject.draw("N6", length=24)
    plain = subject(call)
    subject.layer = build(subject.target, subject.dtype, dropout_p=SHARE)
    for turn in ("", " after a turn of training"):
        subject.layer.eval()
        same_bits(plain, seeded(subject, call, 1), f"dropout_p={SHARE} in evaluation{turn}")
        subject.layer.train()
        first, again, other = (seeded(subject, call, seed) for seed in (1, 1, 2))
        same_bits(first, again, f"a call in training from the same seed{turn}")
        if torch.equal(first, plain):
            raise BrokenError(f"dropout_p={SHARE} drops nothing in training{turn}")
        if torch.equal(first, other):
            raise BrokenError(f"two seeds drop the same in training{turn}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            pair = subject(call), subject(call)
        if torch.equal(*pair):
            raise BrokenError("two calls in training drop the same: random numbers do not go on")
    return exactly(0, "wrong modes")


@softmax_check(
    "N6.mean",
    "With value = 1, the sum of what is left has mean 1 and variance sum_j P_j^2 p / (1 - p), "
    "within five standard errors.",
    applies=lambda promises: promises.dropout,
    verdict="S",
)
def mean(subject: SoftmaxOperation) -> Measured:
    """Add up all rows of many samples; the variance is known, so five is one in a million."""
    call = _unhidden(subject, batch=64, width=8)
    call = call.given(value=torch.ones_like(call.tensors["value"]))
    squares = subject.attend(call).weights.square().sum(-1)  # (B, H, L)
    found = []
    for share in (SHARE, MUCH):
        spread = squares * share / (1 - share)
        off = seeded(subject, call.saying(dropout_p=share), 7)[..., 0].double() - 1
        shift = float(off.sum().abs() / spread.sum().sqrt())
        excess = off.square() - spread
        grown = float(excess.sum().abs() / excess.square().sum().sqrt())
        value = max(shift, grown) if off.isfinite().all() else float("inf")
        where = f"the {'mean' if shift >= grown else 'variance'}, dropout_p={share}"
        found.append(Measured(value, 5.0, "standard errors", where))
    return worst(found)


@softmax_check(
    "N6.backward",
    "The gradient drops what the output dropped: <g, F(v)> = <dF^T g, v> from the same seed.",
    applies=lambda promises: promises.dropout and promises.gradients,
    verdict="R",
)
def backward(subject: SoftmaxOperation) -> Measured:
    """Use that the output is linear in the values, whatever is dropped."""
    call = subject.draw("N6", length=24).saying(dropout_p=SHARE)
    value = call.tensors["value"].detach().clone().requires_grad_()
    with torch.enable_grad():
        out = seeded(subject, call.given(value=value), 3)
    grad_out = subject.normal("N6 grad", *out.shape)
    (in_value,) = torch.autograd.grad(out, [value], grad_out)
    one = float((grad_out.double() * out.detach().double()).sum())
    other = float((in_value.double() * value.detach().double()).sum())
    # every product is off by rounding of the output, of the gradient and of their sums
    sizes = seeded(subject, call.given(value=call.tensors["value"].abs()), 3)
    terms = float((grad_out.double().abs() * sizes.double()).sum())
    unit = 4 * precision.roundoff(subject.dtype) + 64 * precision.accumulation(subject.dtype)
    return Measured(abs(one - other) / (unit * terms), 1.0, f"of {unit:.3g} relative")


def _unhidden(subject: SoftmaxOperation, batch: int, width: int, *, shared: bool = False) -> Call:
    """Return a call of many samples that sees all it may; key/value heads are shared if asked."""
    heads = 4 if shared else subject.heads
    mask = subject.mask(Sizes(batch, heads, KEYS, KEYS), causal=False, wide=ALL_MASK_PARTS)
    sizes = {"heads": heads, "kv_heads": 2 if shared else heads}
    return subject.draw("N6", batch=batch, length=KEYS, width=width, mask=mask, **sizes)


def _showing(subject: SoftmaxOperation, batch: int, *, shared: bool = False) -> Call:
    """Return a call whose output is the probabilities themselves, (B, H, L, S)."""
    return showing_weights(_unhidden(subject, batch=batch, width=KEYS, shared=shared))


@softmax_check(
    "N6.independence",
    "Whether a probability is dropped says nothing about that of the next sample, head, query or "
    "key: their correlation is 0 within five standard errors.",
    applies=lambda promises: promises.dropout,
    verdict="S",
)
def independence(subject: SoftmaxOperation) -> Measured:
    """Let the values be unit vectors: what is 0 of the output was dropped."""
    call = _showing(subject, batch=8, shared=subject.promises.gqa)
    seen = subject.attend(call).weights > 0  # (B, H, L, S)
    out = seeded(subject, call.saying(dropout_p=SHARE), 11)
    kept = (out != 0).double() - (1 - SHARE)
    found = []
    for axis, what in enumerate(("samples", "heads", "queries", "keys")):
        pairs = kept.shape[axis] - 1
        if not pairs:
            continue
        here, there = kept.narrow(axis, 0, pairs), kept.narrow(axis, 1, pairs)
        both = seen.narrow(axis, 0, pairs) & seen.narrow(axis, 1, pairs)
        products = (here * there)[both] / (SHARE * (1 - SHARE))
        value = abs(float(products.sum())) / products.numel() ** 0.5
        found.append(Measured(value, 5.0, "standard errors", f"neighbouring {what}"))
    return worst(found)


@softmax_check(
    "N6.gradients",
    "r_grad <= gate for query, key and value against the definition with the same probabilities "
    "dropped that the output shows as dropped.",
    applies=lambda promises: promises.dropout and promises.gradients,
    verdict="R",
)
def dropped_gradients(subject: SoftmaxOperation) -> Measured:
    """Let the values be unit vectors, read from the output what was dropped, and drop the same."""
    call = _showing(subject, batch=2)
    leaves = call.leaves()
    return worst(_dropped_gradients(subject, call, leaves, _dropped(subject, leaves)))


def _in_company(promises: Promises) -> Iterator[Mapping[str, Any]]:
    """Yield every promised option and kind of mask, one at a time."""
    ways = [way for way in ("causal", "bidirectional") if getattr(promises, way)]
    options = [name for name in ("gqa", *OPTIONS) if getattr(promises, name)]
    parts = [part for part in promises.masks if part not in promises.needs]
    yield from ({"option": name} for name in (*ways, *options, *parts))


@softmax_check(
    "N6.company",
    "Beside any other option: what is left of a probability is that of the definition / (1 - p), "
    "what is hidden is 0, p are dropped, and every gradient drops the same; r <= gate.",
    applies=lambda promises: promises.dropout,
    cases=_in_company,
    verdict="R",
)
def company(subject: SoftmaxOperation, option: str) -> Measured:
    """Let the values be unit vectors, so that the output shows what was dropped, and of what."""
    call = _showing_beside(subject, option)
    exact = subject.attend(call)
    tracks = subject.promises.gradients
    leaves = call.leaves() if tracks else call
    out = _dropped(subject, leaves)
    kept = out.detach() != 0
    seen = exact.weights > 0
    left = exact._replace(
        out=torch.where(kept, exact.weights, 0.0) / (1 - SHARE),
        weights=exact.weights / (1 - SHARE),
    )
    unit = units.analytic(left, call.tensors["value"], subject.dtype)
    limit = Bound(left.out, unit, units.ANALYTIC_GATE, "analytic units")
    count = int(seen.sum())
    off = abs(int((kept & seen).sum()) - count * (1 - SHARE))
    share = Measured(
        off / (count * SHARE * (1 - SHARE)) ** 0.5, 5.0, "standard errors", "the share that is kept"
    )
    found = [near(limit, out.detach(), "what is left"), share]
    return worst([*found, *_dropped_gradients(subject, call, leaves, out)] if tracks else found)


def _showing_beside(subject: SoftmaxOperation, option: str) -> Call:
    """Return a call with an option whose output is the probabilities, (B, H, L, S)."""
    promises, gqa = subject.promises, option == "gqa"
    heads = 4 if gqa else subject.heads
    sizes = Sizes(4, heads, KEYS, KEYS)
    causal = option == "causal" or not promises.bidirectional
    mask = subject.mask(sizes, causal=causal, wide=ALL_MASK_PARTS)
    if option in promises.masks:
        mask = mask & subject.part(option, sizes)
    call = subject.draw(
        f"N6 {option}",
        batch=4,
        heads=heads,
        kv_heads=2 if gqa else heads,
        length=KEYS,
        width=KEYS,
        mask=mask,
    )
    return subject.beside(showing_weights(call), [option], f"N6 {option} option")


def _dropped(subject: SoftmaxOperation, call: Call) -> Tensor:
    """Return what a call gives with dropout."""
    with torch.enable_grad():
        return seeded(subject, call.saying(dropout_p=SHARE), 3)


def _dropped_gradients(
    subject: SoftmaxOperation, call: Call, leaves: Call, out: Tensor
) -> Iterator[Measured]:
    """Measure the gradients against those of the definition that drops what the output shows."""
    grad_out = subject.normal("N6 grad", *out.shape)
    got = received(out, leaves.tensors, grad_out)
    doubled = call.map(lambda _, tensor: tensor.double().requires_grad_())
    value = doubled.tensors["value"]
    with torch.enable_grad():
        exact = subject.attend(doubled)
        left = torch.where(out.detach() != 0, exact.weights, 0.0) / (1 - SHARE)
        dropped = left @ value.repeat_interleave(left.shape[1] // value.shape[1], 1)
    wanted = torch.autograd.grad(dropped, list(doubled.tensors.values()), grad_out.double())
    # a row of the softmax is changed by what it drops, too: no term is larger than of these
    largest = type(exact)(*(tensor.detach() for tensor in exact))
    largest = largest._replace(weights=largest.weights / (1 - SHARE))
    scale = call.extras.get("scale", call.tensors["query"].shape[3] ** -0.5)
    limits = units.analytic_gradients(largest, call.tensors, grad_out, scale, subject.dtype)
    gate, unit = units.ANALYTIC_GATE, "analytic units"
    for name, gradient in zip(doubled.tensors, wanted, strict=True):
        limit = Bound(gradient, limits[name], gate, unit)
        yield near(limit, got[name], f"the gradient of {name}")


@layer_check(
    "N6.visibility",
    "In training, from the same seed, other values at later tokens and at padding leave outputs "
    "that must not see them as they are, to the bit.",
    families=("softmax", "recurrence", "mixer"),
    applies=lambda promises: promises.dropout and (promises.causal or "padding" in promises.masks),
    fields=("dropout_p",),
)
def visibility(subject: LayerSubject) -> Measured:
    """Disturb the last third of the tokens behind a causal mask, and the first as padding."""
    subject.layer = build(subject.target, subject.dtype, dropout_p=SHARE).train()
    call, third = subject.draw("N6", length=KEYS), KEYS // 3
    positions = torch.arange(KEYS, device=subject.device)
    hidden = {}
    if subject.promises.causal:
        hidden["later tokens"] = subject.causal(call), positions >= KEYS - third
    if "padding" in subject.promises.masks:
        starts = torch.tensor([third, third], device=subject.device)
        padded = call.masked(call.mask & attnkit.left_padding(starts))
        hidden["padding"] = padded, positions < third
    for what, (masked, tokens) in hidden.items():
        where = tokens.expand(2, KEYS)
        other = subject.disturbed(masked, where, "N6 other")
        whole, moved = seeded(subject, masked, 5), seeded(subject, other, 5)
        subject.unmoved(masked, (~beside(where, whole),), (whole, moved), f"{what}, in training")
    return exactly(0, "moved elements")
