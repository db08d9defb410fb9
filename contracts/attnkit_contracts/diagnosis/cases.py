"""What the rules between calls are tried with: where a call is cut, reordered, copied, stepped.

Each function yields what a case puts into the lines of a rule, see `rules`, for a call of a check.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from attnkit.masks.tensors import Documents, Padding
from attnkit_contracts.definitions import oracle
from attnkit_contracts.diagnosis.scripts import made_lines, mask_source, placed, whereabouts
from attnkit_contracts.inputs import cuts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from attnkit.masks.constructors import Mask
    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.subjects.subject import Subject

FEW = 12
"""Up to so many tokens every place is tried, beyond them every seventh, as M1 does."""


def once(*_: object) -> Iterable[Mapping[str, Any]]:
    """Return one case that puts nothing in."""
    return ({},)


def said(mask: Mask) -> str:
    """Return the mask as an argument, behind others; nothing for none."""
    return f", mask={mask_source(mask)}" if mask.conjuncts() else ""


def places(subject: Subject, call: Call) -> Iterator[Mapping[str, Any]]:
    """Yield where to cut, see `FEW`, the token before, and the mask of all tokens before."""
    length = call.tensors["x"].shape[1]
    for place in range(1, length) if length <= FEW else range(3, length, 7):
        own = said(cuts.tokens(call, 0, place).mask)
        yield {"t": place, "before": place - 1, "own": own}


def samples(subject: Subject, call: Call) -> Iterator[Mapping[str, Any]]:
    """Yield every sample of several, and its mask alone."""
    batch = len(call.tensors["x"])
    if batch > 1:
        for b in range(batch):
            own = said(cuts.samples(call, [b]).mask)
            yield {"b": b, "at": f"{b} : {b + 1}", "own": own}


def padded(subject: Subject, call: Call) -> Iterator[Mapping[str, Any]]:
    """Yield what padding may hold, where there is any."""
    x = call.tensors["x"]
    real = oracle.real_tokens(call.mask, x.shape[0], x.shape[1], x.device)
    if real.any() and not real.all():
        for held, number in (("1e4", "1e4"), ("NaN", 'float("nan")')):
            written = f"torch.tensor({real.tolist()}){placed(real)}"
            yield {"real": written, "held": held, "number": number}


def documents(subject: Subject, call: Call) -> Iterator[Mapping[str, Any]]:
    """Yield every document, and the mask of its tokens without the documents."""
    marked = [part for part in call.mask.conjuncts() if part.parts == {"documents"}]
    if not marked:
        return
    rest = cuts.without(call.mask, *marked)
    x = call.tensors["x"]
    first = oracle.restarts(call.mask, x.shape[0], x.shape[1], x.device)
    for b, row in enumerate(first):
        edges = [0, *row.nonzero().flatten().tolist(), x.shape[1]]
        for start, stop in itertools.pairwise(edges):
            single = cuts.samples(call.masked(rest), [b])
            own = said(cuts.tokens(single, start, stop).mask)
            at = f"{b} : {b + 1}, {start} : {stop}"
            yield {"b": b, "t": start, "at": at, "own": own}


def stepwise(subject: Subject, call: Call) -> Iterator[Mapping[str, Any]]:
    """Yield how many tokens there are to step through, without a mask."""
    x = call.tensors["x"]
    if not call.mask.conjuncts():
        yield {"batch": len(x), "length": x.shape[1]}


def halves(subject: Subject, call: Call) -> Iterator[Mapping[str, Any]]:
    """Yield where to cut a call without a mask in two."""
    batch, length, _ = call.tensors["x"].shape
    if subject.promises.state and not call.mask.conjuncts() and length > 1:
        yield from ({"batch": batch, "t": t} for t in dict.fromkeys((length // 2, length - 1, 1)))


def cut_back(subject: Subject, call: Call) -> Iterator[Mapping[str, Any]]:
    """Yield where to cut, for a state that can be cut back."""
    yield from halves(subject, call) if subject.promises.truncate else ()


def reordered(subject: Subject, call: Call) -> Iterator[Mapping[str, Any]]:
    """Yield where to cut, for a state of several samples that can be reordered."""
    several = len(call.tensors["x"]) > 1 and subject.promises.reorder
    yield from halves(subject, call) if several else ()


def copied(subject: Subject, _: Call) -> Iterator[Mapping[str, Any]]:
    """Yield the ways to copy a layer."""
    for way, twin in (("deepcopy", "copy.deepcopy"), ("pickle", "pickle.loads(pickle.dumps")):
        yield {"way": way, "twin": f"{twin}(layer)" + ")" * twin.count("(")}


def loaded(subject: Subject, _: Call) -> Iterator[Mapping[str, Any]]:
    """Yield how to make the layer afresh, where that can be written down."""
    where = whereabouts(subject.target.variant)
    if where is not None:
        yield {"fresh": "\n".join(made_lines(subject, where, name="fresh", seed=1))}


def modes(subject: Subject, call: Call) -> Iterator[Mapping[str, Any]]:
    """Yield the modes without gradients."""
    leaves = "\n".join(f"{name}.requires_grad_()" for name in call.tensors)
    yield from ({"mode": mode, "leaves": leaves} for mode in ("no_grad", "inference_mode"))


def stepped(subject: Subject, call: Call) -> Iterator[Mapping[str, Any]]:
    """Yield the mask of the tokens so far, for a mask that says which tokens belong together."""
    parts, written = call.mask.conjuncts(), []
    for part in parts:
        if isinstance(part, Documents):
            written.append(f"attnkit.documents(torch.tensor({part.ids.tolist()})[:, : i + 1])")
        elif isinstance(part, Padding) and part.starts is not None and part.lengths is None:
            starts = part.starts.tolist()
            written.append(f"attnkit.left_padding(torch.tensor({starts}).clamp(max=i + 1))")
    if written and len(written) == len(parts):
        x = call.tensors["x"]
        real = oracle.real_tokens(call.mask, x.shape[0], x.shape[1], x.device)
        yield {
            "batch": len(x),
            "length": x.shape[1],
            "growing": " & ".join(written),
            "real": f"torch.tensor({real.tolist()}){placed(real)}",
        }
