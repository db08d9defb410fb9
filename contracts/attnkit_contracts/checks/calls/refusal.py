"""S10: promises are two-sided. What is promised has an effect, what is not is refused by name.

Accepting an argument and ignoring it is the worst answer: nothing fails, the numbers are wrong.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch

import attnkit
from attnkit.errors import UnsupportedError
from attnkit.masks.constructors import Sizes
from attnkit.promises import ALL_DTYPES, ALL_MASK_PARTS, MaskPart
from attnkit_contracts.catalogue import (
    BrokenError,
    Measured,
    check,
    layer_check,
    mixing_check,
)
from attnkit_contracts.inputs import cuts
from attnkit_contracts.inputs.calls import PLACED, normal
from attnkit_contracts.judging.outputs import exactly, must_be_finite, must_differ, same_bits
from attnkit_contracts.subjects.target import dtype_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from attnkit.masks.constructors import Mask
    from attnkit.promises import Promises
    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.subjects.recurrence import RecurrenceOperation
    from attnkit_contracts.subjects.softmax import SoftmaxOperation
    from attnkit_contracts.subjects.subject import Subject

Found = TypeVar("Found")

LENGTH = 20

SOFTMAX = ("causal", "bidirectional", "cross", "gqa", "value_width", "bias", "scale", "softcap",
           "sinks", "dropout")  # fmt: skip
RECURRENCE = ("gqa", "value_width", "scale", "beta", "state")
DECAYS = ("none", "head", "channel")

NAMES: dict[str, tuple[str, ...]] = {
    "bidirectional": ("bidirectional", "causal"),
    "cross": ("cross", "length", "L != S"),
    "gqa": ("gqa", "head", "group"),
    "heads": ("head",),
    "value_width": ("width", "head_dim"),
    "sinks": ("sink",),
    "gradients": ("grad",),
    "union": ("union", "|", *ALL_MASK_PARTS),
    **dict.fromkeys(DECAYS, ("decay",)),
}
"""What a refusal may call what it refuses; the others have one name."""


def softmax_with(
    subject: SoftmaxOperation, feature: str, causal: bool | None = None
) -> tuple[Call, Call]:
    """Return a plain call, causal or not, and the same one with a feature."""
    keys = LENGTH + 5 if feature == "cross" else LENGTH
    heads = 2 if feature in ("gqa", "heads") else subject.heads
    plain = subject.draw("S10", length=LENGTH, heads=heads)
    plain = plain.masked(subject.mask(cuts.sizes_of(plain), causal=causal))
    sizes = Sizes(2, heads, LENGTH, keys)
    draw = subject.random("S10 options")
    match feature:
        case "causal" | "bidirectional":
            with_it = plain.masked(subject.mask(sizes, causal=feature == "causal"))
            other = subject.mask(sizes, causal=feature != "causal")
            return plain.masked(other), with_it
        case "cross":
            longer = subject.draw("S10", length=LENGTH, keys=keys)
            return plain, longer.masked(subject.mask(sizes, causal=causal))
        case "gqa":
            shared = subject.draw("S10", length=LENGTH, heads=heads, kv_heads=1)
            return plain, shared.masked(plain.mask)
        case "value_width":
            wide = subject.draw("S10", length=LENGTH, value_width=24)
            return plain, wide.masked(plain.mask)
        case "bias":
            bias = subject.cast(normal(draw, 1, 1, LENGTH, LENGTH))
            return plain, plain.given(bias=bias)
        case "sinks":
            return plain, plain.given(sinks=subject.cast(normal(draw, heads)))
        case "scale":
            return plain, plain.saying(scale=1.5)
        case "softcap":
            return plain, plain.saying(softcap=0.5)
        case "dropout":
            return plain, plain.saying(dropout_p=0.5)
    return plain, plain


def recurrence_with(subject: RecurrenceOperation, feature: str) -> tuple[Call, Call]:
    """Return a plain call and the same one with a feature."""
    plain = subject.draw("S10", length=LENGTH, beta=False)
    draw = subject.random("S10 options")
    batch, heads, length, _ = plain.tensors["value"].shape
    match feature:
        case "gqa":
            return plain, subject.draw("S10", length=LENGTH, groups=1, beta=False)
        case "value_width":
            return plain, subject.draw("S10", length=LENGTH, value_width=24, beta=False)
        case "scale":
            return plain, plain.saying(scale=1.5)
        case "beta":
            beta = subject.numbers("beta", (batch, heads, length), draw)
            return plain, plain.given(beta=subject.cast(beta))
        case "state":
            filled = subject.draw("S10", length=LENGTH, state=True, beta=False)
            return filled.without("initial_state"), filled
    return plain, plain


def _cases(names: tuple[str, ...], *, promised: bool) -> Callable[[Promises], Any]:
    def cases(promises: Promises) -> Iterator[Mapping[str, Any]]:
        for name in names:
            if getattr(promises, name) is promised:
                yield {"feature": name}

    return cases


def either_way(subject: Subject, run: Callable[[bool | None], Found]) -> Found:
    """Run with the plainest mask; where that is refused beside what is promised, with another.

    An implementation may refuse what promises cannot say, two of them together: not one alone.
    """
    try:
        return run(None)
    except UnsupportedError:
        if not (subject.promises.causal and subject.promises.bidirectional):
            raise
        return run(False)


def _expect_refusal(subject: Subject, call: Call, feature: str) -> None:
    """Raise `BrokenError` unless the call is refused by name and nothing was written."""
    before = {name: tensor.clone() for name, tensor in call.tensors.items()}
    what = feature.split()[-1]
    with refusing(f"{feature}, which is not promised,", NAMES.get(what, (what,)), UnsupportedError):
        subject(call)
    for name, tensor in call.tensors.items():
        same_bits(before[name], tensor, f"{name}, while {feature} was refused")


@contextmanager
def refusing(what: str, names: str | tuple[str, ...], *errors: type[Exception]) -> Iterator[None]:
    """Raise `BrokenError` unless what is done within is refused by one of its names.

    Args:
        what: Is said of it.
        names: One of them is part of the message, in capitals or not.
        errors: Of these kinds.
    """
    some = (names,) if isinstance(names, str) else names
    try:
        yield
    except errors as error:
        if not any(name.lower() in str(error).lower() for name in some):
            raise BrokenError(
                f"{what} is refused without its name ({' or '.join(some)}): {error}"
            ) from error
    else:
        raise BrokenError(f"{what} is accepted in silence")


def _expect_effect(subject: Subject, plain: Call, with_it: Call, feature: str) -> None:
    """Raise `BrokenError` if a feature changes the definition, but not the output."""
    out = subject(with_it)
    must_be_finite({"output": out}, feature)
    if feature in ("causal", "bidirectional") and not (
        subject.promises.causal and subject.promises.bidirectional
    ):
        return  # there is nothing without it to compare with
    if feature != "dropout":
        without, wanted = subject.exact(plain), subject.exact(with_it)
        must_differ(without["out"], wanted["out"], f"{feature}, in the definition,")
    before = subject(plain)
    if out.shape == before.shape and bool((out == before).all()):
        raise BrokenError(f"{feature} is promised, and ignored: the output is the same without it")


@check(
    "S10.promised",
    "Every option that is promised changes the output.",
    families=("softmax",),
    cases=_cases(SOFTMAX, promised=True),
    required=True,
)
def promised(subject: SoftmaxOperation, feature: str) -> Measured:
    """Call with and without it."""
    either_way(
        subject,
        lambda causal: _expect_effect(subject, *softmax_with(subject, feature, causal), feature),
    )
    return exactly(0, "ignored options")


@check(
    "S10.refused",
    "Every option that is not promised raises UnsupportedError, before anything is written.",
    families=("softmax",),
    cases=_cases(SOFTMAX, promised=False),
)
def refused(subject: SoftmaxOperation, feature: str) -> Measured:
    """Call with it."""
    _expect_refusal(subject, softmax_with(subject, feature)[1], feature)
    return exactly(0, "accepted options")


@check(
    "S10.recurrence_promised",
    "Every option that is promised changes the output.",
    families=("recurrence",),
    cases=_cases(RECURRENCE, promised=True),
    required=True,
)
def recurrence_promised(subject: RecurrenceOperation, feature: str) -> Measured:
    """Call with and without it."""
    _expect_effect(subject, *recurrence_with(subject, feature), feature)
    return exactly(0, "ignored options")


@check(
    "S10.recurrence_refused",
    "Every option that is not promised raises UnsupportedError, before anything is written.",
    families=("recurrence",),
    cases=_cases(RECURRENCE, promised=False),
)
def recurrence_refused(subject: RecurrenceOperation, feature: str) -> Measured:
    """Call with it."""
    _expect_refusal(subject, recurrence_with(subject, feature)[1], feature)
    return exactly(0, "accepted options")


@check(
    "S10.decays",
    "Every form of log_decay that is promised changes the output, every other is refused.",
    families=("recurrence",),
    cases=lambda _: [{"decay": decay} for decay in DECAYS],
    required=True,
)
def decays(subject: RecurrenceOperation, decay: str) -> Measured:
    """Call with each form."""
    call = subject.draw("S10 decay", length=LENGTH, decay=decay, beta=False)  # type: ignore[arg-type]  # one of DECAYS
    if decay not in (subject.promises.decay or ("none",)):
        _expect_refusal(subject, call, f"log_decay {decay}")
    elif decay != "none":
        halved = call.given(log_decay=call.tensors["log_decay"] / 2)
        _expect_effect(subject, halved, call, f"log_decay {decay}")
    return exactly(0, "ignored or accepted decays")


@mixing_check(
    "S10.masks",
    "Every part of a mask that is promised changes the output, every other is refused.",
    cases=lambda _: [{"part": part} for part in ALL_MASK_PARTS],
    required=True,
)
def masks(subject: Subject, part: MaskPart) -> Measured:
    """Join each part to an ordinary mask."""
    return either_way(subject, lambda causal: _masked(subject, part, causal))


def _masked(subject: Subject, part: MaskPart, causal: bool | None) -> Measured:
    call = subject.draw("S10 masks", length=LENGTH)
    sizes = cuts.sizes_of(call)
    plain = call.masked(subject.mask(sizes, causal=causal, wide=PLACED))
    own = [each for each in plain.mask.conjuncts() if each.parts == {part}]
    with_it = plain.masked(cuts.without(plain.mask, *own) & _narrow(subject, part, sizes))
    if part not in subject.promises.masks:
        # a union is also refused for what it is made of
        _expect_refusal(subject, with_it, f"mask {part}")
        return exactly(0, "accepted masks")
    out = subject(with_it)
    must_be_finite({"output": out}, f"mask {part}")
    # a prefix, say, shows nothing beside causal
    causal = subject.promises.causal if causal is None else causal
    way = attnkit.causal() if causal else attnkit.full()
    seen = [(way & each.mask).to_bool(sizes, out.device) for each in (plain, with_it)]
    if bool((seen[0] != seen[1]).any()) and torch.equal(subject(plain), out):
        raise BrokenError(
            f"mask {part} is promised, and ignored: the output is the same without it"
        )
    return exactly(0, "ignored masks")


def _narrow(subject: Subject, part: MaskPart, sizes: Sizes) -> Mask:
    """Return a mask of this kind that hides more than the one a subject may have of its own."""
    if part == "window":
        return attnkit.sliding_window(3)
    if part == "blocks":
        own = torch.eye(-(-sizes.keys // 8), dtype=torch.bool, device=subject.device)
        return attnkit.blocks(own, 8)
    return subject.part(part, sizes)


@layer_check(
    "S10.bidirectional",
    "A mixer that promises to leave later tokens visible does: without a mask, other values at "
    "tokens >= p change the outputs before p.",
    families=("mixer",),
    applies=lambda promises: promises.bidirectional,
)
def bidirectional(subject: Subject) -> Measured:
    """Disturb the second half of the tokens, and look at the first."""
    call, half = subject.draw("S10 later", length=LENGTH), LENGTH // 2
    later = torch.arange(LENGTH, device=subject.device) >= half
    other = subject.disturbed(call, later.expand(2, -1), "S10 other")
    if torch.equal(subject(call)[:, :half], subject(other)[:, :half]):
        raise BrokenError(
            f"bidirectional is promised, but no output before token {half} depends on a later one"
        )
    return exactly(0, "ignored promises")


@check(
    "S10.needs",
    "A call without a mask part that the subject cannot do without raises UnsupportedError.",
    families=("softmax", "recurrence"),
    applies=lambda promises: bool(promises.needs),
)
def needs(subject: Subject) -> Measured:
    """Leave each of the parts out, alone."""
    call = subject.draw("S10 needs", length=LENGTH)
    for part in subject.promises.needs:
        own = [each for each in call.mask.conjuncts() if part in each.parts]
        bare = call.masked(cuts.without(call.mask, *own))
        _expect_refusal(subject, bare, f"a mask without {part}")
    return exactly(0, "accepted calls")


@check(
    "S10.heads",
    "A subject for one head refuses two.",
    families=("softmax",),
    applies=lambda promises: promises.heads == "one",
)
def one_head(subject: SoftmaxOperation) -> Measured:
    """Call with two heads."""
    _expect_refusal(subject, subject.draw("S10", length=LENGTH, heads=2), "heads")
    return exactly(0, "accepted calls")


@check(
    "S10.dtypes",
    "Every dtype that is not promised raises UnsupportedError.",
    families=("softmax", "recurrence"),
    cases=lambda promises: [{"other": d} for d in ALL_DTYPES if d not in promises.dtypes],
)
def dtypes(subject: Subject, other: str) -> Measured:
    """Call with inputs in it."""
    call = subject.draw("S10", length=LENGTH)
    _expect_refusal(subject, call.map(lambda _, t: t.to(dtype_of(other))), f"dtype {other}")
    return exactly(0, "accepted dtypes")


@check(
    "S10.gradients",
    "Where gradients are not promised, inputs that require them raise UnsupportedError.",
    families=("softmax", "recurrence"),
    applies=lambda promises: not promises.gradients,
)
def no_gradients(subject: Subject) -> Measured:
    """Call with inputs that require gradients."""
    _expect_refusal(subject, subject.draw("S10", length=LENGTH).leaves(), "gradients")
    return exactly(0, "accepted calls")
