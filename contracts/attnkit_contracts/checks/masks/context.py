"""M, continued: what a layer sees of a context, and from where."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

import attnkit
from attnkit.errors import AttnkitError, ConfigError, UnsupportedError
from attnkit_contracts.catalogue import BrokenError, Measured, layer_check
from attnkit_contracts.checks.calls.refusal import refusing
from attnkit_contracts.inputs.calls import normal, paddings
from attnkit_contracts.judging.outputs import agree, exactly, near, same_bits, worst

if TYPE_CHECKING:
    from torch import Tensor

    from attnkit_contracts.inputs.calls import Call
    from attnkit_contracts.subjects.layers import LayerSubject

QUERIES, KEYS, WIDTH = 9, 14, 24
"""L, S and context_dim, all different."""


@layer_check(
    "M14.context",
    "With a context_dim, every output depends on every token of its own sample's context, early "
    "queries on late tokens too, and on no other sample's, to the bit; without the promises "
    "cross and bidirectional a context is refused.",
    families=("softmax",),
    relations=("exact",),
    fields=("context_dim",),
)
def context(subject: LayerSubject) -> Measured:
    """Change one token of one sample's context, the first or the last."""
    found = _with_context(subject)
    if found is None:
        return exactly(0, "accepted contexts")
    crossed, call = found
    plain = crossed(call)
    for sample, place in ((1, 0), (1, KEYS - 1), (2, KEYS // 2)):
        held = call.tensors["context"].clone()
        held[sample, place] = -3 * held[sample, place]
        out = crossed(call.given(context=held))
        others = [each for each in range(3) if each != sample]
        what = f"token {place} of sample {sample}'s context"
        same_bits(plain[others], out[others], f"the other samples, by {what},")
        still = (plain[sample] == out[sample]).all(-1)
        # a pattern of blocks, say, leaves some out
        if still.any() and not subject.promises.needs:
            raise BrokenError(f"{what} does not change output {int(still.nonzero()[0])}")
    _expect_refusals(crossed, call)
    return exactly(0, "wrong elements")


@layer_check(
    "M14.context_padding",
    "A padded context, on the left or right, gives what the real part of it gives, whatever the "
    "padding holds, and what the definition gives, where the variant brings one; queries that come "
    "in pieces, with a state, give what they give at once.",
    families=("softmax",),
    relations=("exact",),
    fields=("context_dim",),
    applies=lambda promises: "padding" in promises.masks,
    verdict="R",
)
def context_padding(subject: LayerSubject) -> Measured:
    """Compare with contexts that are cut, sample by sample."""
    opened = _with_context(subject)
    if opened is None:
        return exactly(0, "accepted contexts")
    crossed, call = opened
    counts, found = torch.tensor([0, 1, 9], device=subject.device), []
    for what, (mask, real) in paddings(KEYS, counts).items():
        held = torch.where(real[..., None], call.tensors["context"], float("nan"))
        out = crossed(call.given(context=held).masked(mask))
        for sample in range(3):
            one = call.samples(torch.tensor([sample], device=subject.device))
            alone = one.given(context=one.tensors["context"][:, real[sample]])
            limit = crossed.bound(alone, probes=4)
            found.append(agree(limit, crossed(alone), out[sample : sample + 1], what))
        if subject.target.variant.layer_definition is not None:
            padded = call.masked(mask)
            found.append(near(crossed.judged(padded)["out"], crossed(padded), f"{what}, defined"))
    if subject.promises.state:
        found.append(_in_pieces(crossed, call))
    return worst(found)


def _with_context(subject: LayerSubject) -> tuple[LayerSubject, Call] | None:
    """Return a layer with a context, and a call; None where it is refused and may be."""
    promises, fields = subject.promises, type(subject.config).model_fields
    options: dict[str, Any] = {"context_dim": WIDTH}
    options |= {"is_causal": False} if "is_causal" in fields else {}
    draw = subject.random("M14")
    call = subject.draw("M14", batch=3, length=QUERIES).masked(attnkit.full())
    call = call.given(context=subject.cast(normal(draw, 3, KEYS, WIDTH)))
    promised = promises.cross and promises.bidirectional and not promises.needs
    try:
        found = subject.remade(**options)
        found(call)
    except (ConfigError, UnsupportedError) as error:
        if promised:
            raise BrokenError(
                f"cross is promised, context_dim={WIDTH} is refused: {error}"
            ) from error
        return None
    if not promised and not promises.needs:
        raise BrokenError(
            f"cross and bidirectional are not both promised, and context_dim={WIDTH} is accepted"
        )
    return found, call


def _expect_refusals(crossed: LayerSubject, call: Call) -> None:
    """Leave the context out, and give it of another width and of other samples."""
    held = call.tensors["context"]
    wrong = {
        "no context": call.without("context"),
        "a context of another width": call.given(context=held[..., 1:]),
        "a context of one sample": call.given(context=held[:1]),
    }
    for what, each in wrong.items():
        with refusing(what, "context", AttnkitError):
            crossed(each)


def _in_pieces(crossed: LayerSubject, call: Call) -> Measured:
    state, outputs = crossed.begin(3), []
    for start, stop in ((0, 4), (4, 5), (5, QUERIES)):
        piece: Tensor
        piece, state = crossed.layer(
            call.tensors["x"][:, start:stop], context=call.tensors["context"], state=state
        )
        outputs.append(piece)
    if state.tokens != QUERIES:
        raise BrokenError(f"expected a state of {QUERIES} tokens, got {state.tokens}")
    return agree(crossed.bound(call, probes=4), crossed(call), torch.cat(outputs, 1), "in pieces")
