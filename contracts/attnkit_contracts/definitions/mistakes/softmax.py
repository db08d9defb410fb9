"""Named mistakes of softmax attention: the definition in steps, and the steps done wrong.

`attend` is the definition once more, cut into steps; a mistake replaces one of them. The masks
read wrongly are in `mistakes_masks`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch

from attnkit.masks.constructors import Mask, Sizes
from attnkit_contracts.definitions.mistakes.masks import READERS, visible
from attnkit_contracts.definitions.mistakes.mistake import Mistake
from attnkit_contracts.definitions.oracle import Softmax

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from attnkit_contracts.inputs.calls import Call


class Terms(NamedTuple):
    """What logits are made of.

    Attributes:
        product: q . k, (B, H, L, S).
        scale: Multiplies it.
        softcap: Caps the product; None for no cap.
        bias: Added to the capped product; None for none.
        seen: (B, H, L, S), True where a key is visible.
        sinks: (H,); None for none.
        dtype: Of the inputs.
    """

    product: Tensor
    scale: float
    softcap: float | None
    bias: Tensor | None
    seen: Tensor
    sinks: Tensor | None
    dtype: torch.dtype


def capped(logits: Tensor, cap: float | None) -> Tensor:
    """Cap by tanh."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


def added(logits: Tensor, bias: Tensor | None) -> Tensor:
    """Add a bias."""
    return logits if bias is None else logits + bias


def hidden(logits: Tensor, seen: Tensor, by: float = float("-inf")) -> Tensor:
    """Put -inf where a key is hidden."""
    return torch.where(seen, logits, by)


def spread(tensor: Tensor, shared: int) -> Tensor:
    """Give query head h the key/value head h // shared."""
    return tensor.repeat_interleave(shared, 1)


def scale_of(call: Call) -> float:
    """Return the scale: E ** -0.5 unless another is given."""
    given = call.extras.get("scale")
    return call.tensors["query"].shape[3] ** -0.5 if given is None else float(given)


def logits_of(terms: Terms) -> Tensor:
    """Scale, cap, add the bias, hide."""
    scaled = capped(terms.scale * terms.product, terms.softcap)
    return hidden(added(scaled, terms.bias), terms.seen)


def with_sink(logits: Tensor, sinks: Tensor | None) -> Tensor:
    """Return the logits with the sink's behind them, (B, H, L, S + 1); -inf for no sink."""
    last = torch.full_like(logits[..., :1], float("-inf"))
    last = last if sinks is None else sinks[:, None, None].expand_as(last)
    return torch.cat((logits, last), -1)


def empty_rows(logits: Tensor) -> Tensor:
    """Return which rows are hidden altogether, (B, H, L, 1)."""
    return (logits == float("-inf")).all(-1, keepdim=True)


def normalised(logits: Tensor) -> Tensor:
    """Take the softmax; a row that is hidden altogether is 0."""
    empty = empty_rows(logits)
    return torch.where(empty, 0.0, torch.where(empty, 0.0, logits).softmax(-1))


def weights_of(logits: Tensor, terms: Terms) -> Tensor:
    """Return the probabilities, those of the sink last, (B, H, L, S + 1)."""
    return normalised(with_sink(logits, terms.sinks))


def dropped(weights: Tensor, kept: Tensor, share: float) -> Tensor:
    """Drop probabilities, and divide those kept by 1 - share."""
    return weights * kept / (1 - share)


def given(call: Call) -> Call:
    """Take what is given."""
    return call


@dataclass(frozen=True)
class Steps:
    """The definition of softmax attention, step by step; a mistake replaces one."""

    given: Callable[[Call], Call] = given
    visible: Callable[[Mask, Sizes, torch.device], Tensor] = visible
    spread: Callable[[Tensor, int], Tensor] = spread
    scale: Callable[[Call], float] = scale_of
    logits: Callable[[Terms], Tensor] = logits_of
    weights: Callable[[Tensor, Terms], Tensor] = weights_of
    dropped: Callable[[Tensor, Tensor, float], Tensor] = dropped


RIGHT = Steps()


def attend(call: Call, steps: Steps = RIGHT, kept: Tensor | None = None) -> Softmax:
    """Attend by these steps, in float64; drop all probabilities but those kept, (B, H, L, S)."""
    call = steps.given(call)
    tensors = {name: tensor.double() for name, tensor in call.tensors.items()}
    query, key, value = tensors["query"], tensors["key"], tensors["value"]
    sizes = Sizes(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    shared = sizes.heads // key.shape[1]
    key, value = steps.spread(key, shared), steps.spread(value, shared)
    bias = tensors.get("bias")
    terms = Terms(
        torch.einsum("bhle,bhse->bhls", query, key),
        steps.scale(call),
        call.extras.get("softcap"),
        None if bias is None else bias[(None,) * (4 - bias.dim())],
        steps.visible(call.mask, sizes, query.device),
        tensors.get("sinks"),
        call.tensors["query"].dtype,
    )
    size = abs(terms.scale) * torch.einsum("bhle,bhse->bhls", query.abs(), key.abs())
    if terms.bias is not None:
        # -inf hides, and rounds nothing
        size = size + torch.where(terms.bias.isfinite(), terms.bias.abs(), 0.0)
    weights = steps.weights(steps.logits(terms), terms)
    weights, sink = weights[..., :-1], weights[..., -1]
    if kept is not None:
        weights = steps.dropped(weights, kept, float(call.extras["dropout_p"]))
    out = torch.einsum("bhls,bhsv->bhlv", weights, value)
    largest = (size * (weights != 0)).amax(-1) if sizes.keys else sink
    return Softmax(out, weights, sink, largest)


def _width(call: Call) -> int:
    return call.tensors["query"].shape[3]


def _padded_scale(of: int, call: Call) -> float:
    return 1.0 / math.sqrt(-(-_width(call) // of) * of)


def _default(call: Call) -> bool:
    return call.extras.get("scale") is None


def _held(of: Callable[[Tensor], Tensor], *names: str) -> Steps:
    """Return steps that are given other tensors of these names."""
    return replace(RIGHT, given=lambda c: c.given(**{n: of(c.tensors[n]) for n in names}))


def _rounded_to(bits: int) -> Callable[[Tensor], Tensor]:
    """Round to so many binary digits."""

    def rounded(tensor: Tensor) -> Tensor:
        fraction, exponent = torch.frexp(tensor.detach())
        near = torch.ldexp((fraction * 2.0**bits).round() * 2.0**-bits, exponent)
        return tensor + (near - tensor.detach())

    return rounded


def _scale(of: Callable[[Call], float]) -> Steps:
    return replace(RIGHT, scale=of)


def _default_scale(of: Callable[[Call], float]) -> Steps:
    """Return steps whose default scale is another; one that is given is applied."""
    return _scale(lambda call: of(call) if _default(call) else scale_of(call))


def _logits(of: Callable[[Terms], Tensor]) -> Steps:
    return replace(RIGHT, logits=of)


def _cap(of: Callable[[Terms, float], Tensor]) -> Steps:
    """Return steps that are wrong only where there is a cap."""
    return _logits(
        lambda t: logits_of(t) if t.softcap is None else hidden(of(t, t.softcap), t.seen)
    )


def _rounded_logits(terms: Terms) -> Tensor:
    def rounded(tensor: Tensor) -> Tensor:
        return tensor.to(terms.dtype).double()

    scaled = rounded(terms.scale * rounded(terms.product))
    if terms.softcap is not None:
        # as written: divide, tanh, multiply
        scaled = rounded(torch.tanh(rounded(scaled / terms.softcap)))
        scaled = rounded(terms.softcap * scaled)
    return hidden(rounded(added(scaled, terms.bias)), terms.seen)


def _bias(of: Callable[[Terms, Tensor], Tensor]) -> Steps:
    """Return steps that are wrong only where there is a bias."""
    return _logits(lambda t: logits_of(t) if t.bias is None else hidden(of(t, t.bias), t.seen))


def _scaled(terms: Terms) -> Tensor:
    return capped(terms.scale * terms.product, terms.softcap)


def _sinks(of: Callable[[Terms, Tensor], Tensor | None]) -> Steps:
    """Return steps with other sinks."""

    def weights(logits: Tensor, terms: Terms) -> Tensor:
        changed = None if terms.sinks is None else of(terms, terms.sinks)
        return weights_of(logits, terms._replace(sinks=changed))

    return replace(RIGHT, weights=weights)


def _as_unmasked(logits: Tensor, terms: Terms) -> Tensor:
    empty = ~terms.seen.any(-1, keepdim=True)
    plain = logits_of(terms._replace(seen=torch.ones_like(terms.seen)))
    return weights_of(torch.where(empty, plain, logits), terms)


def _relative(logits: Tensor, peak: Tensor) -> Tensor:
    """Return exponentials of logits relative to a largest one."""
    return torch.exp(logits - torch.where(peak == float("-inf"), 0.0, peak))


def _divided(shares: Tensor) -> Tensor:
    """Divide rows by their sums; a row of zeros stays one."""
    total = shares.sum(-1, keepdim=True)
    return shares / torch.where(total == 0, 1.0, total)


def _no_denominator(logits: Tensor, terms: Terms) -> Tensor:
    whole = with_sink(logits, terms.sinks)
    return _relative(whole, whole.amax(-1, keepdim=True))


def _unscaled_blocks(block: int) -> Callable[[Tensor, Terms], Tensor]:
    """Sum blocks of keys, each relative to the largest logit so far, without going back."""

    def weights(logits: Tensor, terms: Terms) -> Tensor:
        whole = with_sink(logits, terms.sinks)
        running = whole.cummax(-1).values
        last = torch.arange(whole.shape[-1], device=whole.device) // block * block + block - 1
        peak = running[..., last.clamp(max=whole.shape[-1] - 1)]
        return _divided(_relative(whole, peak))

    return weights


def _weights(*of: Callable[[Tensor, Terms], Tensor]) -> tuple[Steps, ...]:
    return tuple(replace(RIGHT, weights=each) for each in of)


PAIR = ("key", "value")

_OTHERS: tuple[tuple[str, str, tuple[Steps, ...]], ...] = (
    ("heads_tiled", "the key/value heads tiled instead of interleaved",
     (replace(RIGHT, spread=lambda t, shared: t.repeat(1, shared, 1, 1)),)),
    ("heads_first", "all query heads reading the first key/value head",
     (replace(RIGHT, spread=lambda t, s: t[:, :1].expand(-1, t.shape[1] * s, -1, -1)),)),
    ("heads_neighbour", "each head reading its neighbour's keys and values",
     tuple(_held(partial(torch.roll, shifts=by, dims=1), *PAIR) for by in (1, -1))),
    ("samples_neighbour", "each sample reading its neighbour's keys and values",
     tuple(_held(partial(torch.roll, shifts=by, dims=0), *PAIR) for by in (1, -1))),
    ("keys_shifted", "keys one place off, beside the values of others",
     tuple(_held(partial(torch.roll, shifts=by, dims=2), "key") for by in (1, -1))),
    ("inputs_rounded", "query, key and value rounded to half precision, or to tf32",
     tuple(_held(_rounded_to(bits), *names) for bits in (8, 11)
           for names in (("query", "key", "value"), ("query", "key"), ("query",)))),
    ("scale_twice", "the scale applied twice", (_scale(lambda c: scale_of(c) ** 2),)),
    ("scale_missing", "no scale at all", (_scale(lambda _: 1.0),)),
    ("scale_default_missing", "no scale where none is given", (_default_scale(lambda _: 1.0),)),
    ("scale_argument_ignored", "the default scale although another is given",
     (_scale(lambda c: _width(c) ** -0.5),)),
    ("scale_both", "the default scale on top of the one given",
     (_scale(lambda c: scale_of(c) * (1.0 if _default(c) else _width(c) ** -0.5)),)),
    ("scale_padded_width", "the scale of a padded width (E rounded up)",
     (*(_default_scale(partial(_padded_scale, of)) for of in (8, 16, 32, 64)),
      _default_scale(lambda c: 2.0 ** (-0.5 * math.ceil(math.log2(_width(c))))))),
    ("scale_width", "the scale 1 / E instead of 1 / sqrt(E)",
     (_default_scale(lambda c: 1 / _width(c)),)),
    ("scale_value_width", "the scale of the value's width",
     (_default_scale(lambda c: c.tensors["value"].shape[3] ** -0.5),)),
    ("base_2", "powers of 2 instead of e in the softmax",
     (_logits(lambda t: math.log(2) * logits_of(t)),)),
    ("logits_rounded", "logits rounded to the dtype of the inputs before the softmax",
     (_logits(_rounded_logits),)),
    ("softcap_ignored", "the soft cap ignored",
     (_logits(lambda t: logits_of(t._replace(softcap=None))),)),
    ("softcap_after_mask", "the soft cap after the mask, which shows hidden keys",
     (_logits(lambda t: added(capped(hidden(t.scale * t.product, t.seen), t.softcap), t.bias)),)),
    ("softcap_after_bias", "the soft cap after the bias",
     (_cap(lambda t, cap: capped(added(t.scale * t.product, t.bias), cap)),)),
    ("softcap_before_scale", "the soft cap before the scale",
     (_cap(lambda t, cap: added(t.scale * capped(t.product, cap), t.bias)),)),
    ("softcap_not_undone", "the soft cap without multiplying back, tanh(x / cap)",
     (_cap(lambda t, cap: added(torch.tanh(t.scale * t.product / cap), t.bias)),)),
    ("softcap_not_divided", "the soft cap without dividing first, cap * tanh(x)",
     (_cap(lambda t, cap: added(cap * torch.tanh(t.scale * t.product), t.bias)),)),
    ("bias_ignored", "the bias ignored", (_bias(lambda t, _: _scaled(t)),)),
    ("bias_before_scale", "the bias added before the scale",
     (_bias(lambda t, bias: capped(t.scale * (t.product + bias), t.softcap)),)),
    ("bias_subtracted", "the bias subtracted", (_bias(lambda t, bias: _scaled(t) - bias),)),
    ("bias_first_head", "the bias of the first head for all heads",
     (_bias(lambda t, bias: _scaled(t) + bias[:, :1]),)),
    ("sinks_ignored", "the sinks ignored", (_sinks(lambda *_: None),)),
    ("sinks_scaled", "the sinks scaled like logits", (_sinks(lambda t, s: t.scale * s),)),
    ("sinks_capped", "the sinks capped like logits", (_sinks(lambda t, s: capped(s, t.softcap)),)),
    ("sinks_in_output", "the sink's probability counted into the output, one key further on",
     _weights(lambda logits, t: weights_of(logits, t).roll(0 if t.sinks is None else -1, -1))),
    ("masked_rows_mean", "a mean of values for rows that see nothing",
     _weights(lambda logits, t: weights_of(torch.where(empty_rows(logits), 0.0, logits), t),
              _as_unmasked)),
    ("masked_rows_nan", "0 / 0 for rows that see nothing",
     _weights(lambda logits, t: with_sink(logits, t.sinks).softmax(-1))),
    ("denominator_missing", "exponentials that are not divided by their sum",
     _weights(_no_denominator)),
    ("rescaling_missing", "blocks of keys summed without rescaling to a new largest logit",
     _weights(*(_unscaled_blocks(block) for block in (1, 16, 32, 64, 128)))),
    ("softmax_over_queries", "a softmax over queries instead of keys",
     _weights(lambda logits, t: with_sink(logits, t.sinks).mT.softmax(-1).mT.nan_to_num(0.0))),
    ("dropout_not_rescaled", "dropout that does not divide what it keeps by 1 - p",
     (replace(RIGHT, dropped=lambda w, kept, _: w * kept),)),
    ("dropout_before_softmax", "dropout before the softmax, which shares out what it drops",
     (replace(RIGHT, dropped=lambda w, kept, _: _divided(w * kept)),)),
)  # fmt: skip


MISTAKES: tuple[Mistake[Steps], ...] = tuple(
    Mistake(name, statement, tuple(replace(RIGHT, visible=each) for each in readers))
    for name, statement, readers in READERS
) + tuple(Mistake(*each) for each in _OTHERS)
"""All named mistakes of softmax attention."""
