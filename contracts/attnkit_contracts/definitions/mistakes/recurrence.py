"""Named mistakes of recurrences: the definition in steps, and the steps done wrong."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch

from attnkit_contracts.definitions import oracle
from attnkit_contracts.definitions.mistakes.mistake import Mistake

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from attnkit.interface import Options
    from attnkit_contracts.inputs.calls import Call


class Token(NamedTuple):
    """What one step is given.

    Attributes:
        q: (B, H, E).
        k: (B, H, E).
        v: (B, H, Ew).
        decay: (B, H, E, 1), multiplies the state.
        beta: (B, H, 1); None for no delta rule.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    decay: Tensor
    beta: Tensor | None


class Real(NamedTuple):
    """What the mask says about tokens, (B, L) each.

    Attributes:
        keep: False at padding.
        restart: True where the state is emptied first.
    """

    keep: Tensor
    restart: Tensor


def recalled(state: Tensor, k: Tensor) -> Tensor:
    """Return S^T k, (B, H, Ew)."""
    return torch.einsum("bhev,bhe->bhv", state, k)


def put(state: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return S + k v^T."""
    return state + k[..., :, None] * v[..., None, :]


def new_value(state: Tensor, at: Token) -> Tensor:
    """Return what is put in: v, or what the delta rule leaves of it."""
    return at.v if at.beta is None else at.beta * (at.v - recalled(state, at.k))


def step(state: Tensor, at: Token) -> tuple[Tensor, Tensor]:
    """Decay, put in, read; returns the state and S^T q."""
    state = state * at.decay
    state = put(state, at.k, new_value(state, at))
    return state, recalled(state, at.q)


def spread(tensor: Tensor, shared: int) -> Tensor:
    """Give head h the group h // shared."""
    return tensor.repeat_interleave(shared, 1)


def factor(log_decay: Tensor) -> Tensor:
    """Return the decay of a natural logarithm."""
    return log_decay.exp()


def scale_of(call: Call) -> float:
    """Return the scale: 1 unless another is given."""
    return float(call.extras.get("scale") or 1.0)


def finish(options: Options, out: Tensor, width: int) -> Tensor:
    """Let the options finish outputs, for values of this width."""
    return options.finish(out)


@dataclass(frozen=True)
class Rules:
    """The definition of a recurrence, step by step; a mistake replaces one.

    Attributes:
        step: From state and token to state and output.
        spread: From groups to heads.
        factor: From log_decay to what multiplies the state.
        scale: Of the outputs.
        start: From the initial state to the one that is started from.
        final: From the initial and the last state to the one returned.
        real: What is made of the mask.
        padded_decay: Whether the state decays over padding.
        lost: What happens to the state at the start of a chunk.
        chunk: How long a chunk is, by the options.
        finish: From sums to outputs.
    """

    step: Callable[[Tensor, Token], tuple[Tensor, Tensor]] = step
    spread: Callable[[Tensor, int], Tensor] = spread
    factor: Callable[[Tensor], Tensor] = factor
    scale: Callable[[Call], float] = scale_of
    start: Callable[[Tensor], Tensor] = lambda state: state
    final: Callable[[Tensor, Tensor], Tensor] = lambda _, state: state
    real: Callable[[Real], Real] = lambda real: real
    padded_decay: bool = False
    lost: Callable[[Tensor, Token], tuple[Tensor, Token]] = lambda state, at: (state, at)
    chunk: Callable[[Options], int] = lambda _: 1 << 30
    finish: Callable[[Options, Tensor, int], Tensor] = finish


RIGHT = Rules()


def run(
    call: Call, options: Options, tensors: Mapping[str, Tensor], rules: Rules = RIGHT
) -> dict[str, Tensor]:
    """Run a recurrence by these rules: ``out`` (B, H, L, Ev) and ``state``, in float64.

    Tensors are those of the call, or of several, one behind the other along the batch.
    """
    given = {name: tensor.double() for name, tensor in tensors.items()}
    batch, heads, length, width = given["value"].shape
    real = rules.real(_real(call, batch, length, given["value"].device))
    keep = real.keep[:, None, :, None]
    query, key, value = options.features(given["query"], given["key"], given["value"])
    key, value = torch.where(keep, key, 0.0), torch.where(keep, value, 0.0)
    query, key = (rules.spread(each, heads // each.shape[1]) for each in (query, key))
    decay = _decays(given.get("log_decay"), key, keep, rules)
    shape = options.state_shape(given["query"].shape[3], width)
    first = given.get("initial_state", value.new_zeros(batch, heads, *shape))
    state, outs = rules.start(first), []
    for t in range(length):
        state = torch.where(real.restart[:, t, None, None, None], 0.0, state)
        beta = given["beta"][:, :, t, None] if "beta" in given else None
        at = Token(query[:, :, t], key[:, :, t], value[:, :, t], decay[:, :, t, :, None], beta)
        if t and t % rules.chunk(options) == 0:
            state, at = rules.lost(state, at)
        state, out = rules.step(state, at)
        outs.append(rules.scale(call) * out)
    joined = torch.stack(outs, 2) if outs else value * 0.0
    return {"out": rules.finish(options, joined, width), "state": rules.final(first, state)}


def _real(call: Call, batch: int, length: int, device: torch.device) -> Real:
    """Read the mask for one batch, or for several behind each other."""
    size = len(call.tensors["value"])
    times = batch // size if size else 1
    keep = oracle.real_tokens(call.mask, size, length, device)
    restart = oracle.restarts(call.mask, size, length, device)
    return Real(keep.repeat(times, 1), restart.repeat(times, 1))


def _decays(log_decay: Tensor | None, key: Tensor, keep: Tensor, rules: Rules) -> Tensor:
    """Return what multiplies the state before each token, (B, H, L, E)."""
    if log_decay is None:
        return torch.ones_like(key)
    logs = log_decay if log_decay.dim() == 4 else log_decay[..., None]
    decay = rules.factor(logs)
    decay = decay if rules.padded_decay else torch.where(keep, decay, 1.0)
    return decay.expand_as(key)


def _read_then_decay(state: Tensor, at: Token) -> tuple[Tensor, Tensor]:
    state = put(state, at.k, new_value(state, at))
    return state * at.decay, recalled(state, at.q)


def _whole_erasure(state: Tensor, at: Token) -> Tensor:
    state = state * at.decay
    return put(state, at.k, at.v if at.beta is None else at.beta * at.v - recalled(state, at.k))


def _transposed(state: Tensor) -> Tensor:
    return state.mT if state.shape[2] == state.shape[3] else state


def _divided(by: Callable[[Tensor], Tensor]) -> Rules:
    """Return rules that make something else of the normaliser, where there is one."""

    def finished(options: Options, out: Tensor, width: int) -> Tensor:
        if out.shape[-1] != width + 1:
            return options.finish(out)
        return out[..., :-1] / by(out[..., -1:])

    return replace(RIGHT, finish=finished)


def _chunks(lost: Callable[[Tensor, Token], tuple[Tensor, Token]]) -> tuple[Rules, ...]:
    """Return rules that lose something at every start of a chunk, of several lengths."""
    own = replace(RIGHT, lost=lost, chunk=lambda o: int(getattr(o, "chunk_size", 1 << 30)))
    fixed = (partial(_always, length) for length in (16, 32, 64, 128))
    return (own, *(replace(RIGHT, lost=lost, chunk=chunk) for chunk in fixed))


def _always(length: int, _: Options) -> int:
    return length


def _puts(of: Callable[[Tensor, Token], Tensor]) -> Rules:
    """Return rules whose step makes another state, and reads that."""
    return replace(RIGHT, step=lambda state, at: (after := of(state, at), recalled(after, at.q)))


def _factors(*of: Callable[[Tensor], Tensor]) -> tuple[Rules, ...]:
    return tuple(replace(RIGHT, factor=each) for each in of)


_TABLE: tuple[tuple[str, str, tuple[Rules, ...]], ...] = (
    ("decay_after_update", "the decay applied after the update",
     (_puts(lambda s, at: put(s, at.k, new_value(s, at)) * at.decay),
      _puts(lambda s, at: put(s, at.k, new_value(s * at.decay, at)) * at.decay),
      replace(RIGHT, step=_read_then_decay))),
    ("decay_ignored", "the decay ignored", _factors(torch.ones_like)),
    ("decay_base_2", "the decay taken for a logarithm to base 2", _factors(torch.exp2)),
    ("decay_not_exponentiated", "log_decay used without the exponential",
     _factors(lambda g: g, lambda g: -g, lambda g: 1 + g)),
    ("decay_inverted", "the decay's sign inverted, so that the state grows",
     _factors(lambda g: (-g).exp())),
    ("decay_twice", "the decay applied twice", _factors(lambda g: (2 * g).exp())),
    ("decay_first_channel", "the first channel's decay for all channels",
     _factors(lambda g: g[..., :1].exp())),
    ("decay_mean", "the mean decay of all channels for each",
     _factors(lambda g: g.mean(-1, keepdim=True).exp())),
    ("beta_ignored", "beta ignored, so without the delta rule",
     (replace(RIGHT, step=lambda s, at: step(s, at._replace(beta=None))),)),
    ("beta_one", "beta taken to be 1",
     (replace(RIGHT, step=lambda s, at: step(
         s, at if at.beta is None else at._replace(beta=torch.ones_like(at.beta)))),)),
    ("delta_without_erasure", "the delta rule without its erasure",
     (_puts(lambda s, at: put(s * at.decay, at.k, at.v if at.beta is None else at.beta * at.v)),)),
    ("delta_erases_all", "the delta rule with beta on the new value only",
     (_puts(_whole_erasure),)),
    ("delta_of_undecayed", "the delta rule reading the state before its decay",
     (_puts(lambda s, at: put(s * at.decay, at.k, new_value(s, at))),)),
    ("read_before_update", "outputs read before the own token is put in",
     (replace(RIGHT, step=lambda s, at: (step(s, at)[0], recalled(s * at.decay, at.q))),)),
    ("groups_tiled", "the groups of query and key tiled instead of interleaved",
     (replace(RIGHT, spread=lambda t, shared: t.repeat(1, shared, 1, 1)),)),
    ("groups_first", "all heads reading the first group",
     (replace(RIGHT, spread=lambda t, s: t[:, :1].expand(-1, t.shape[1] * s, -1, -1)),)),
    ("scale_ignored", "the scale ignored", (replace(RIGHT, scale=lambda _: 1.0),)),
    ("scale_twice", "the scale applied twice",
     (replace(RIGHT, scale=lambda call: scale_of(call) ** 2),)),
    ("scale_of_softmax", "the scale 1 / sqrt(E) of softmax attention",
     (replace(RIGHT, scale=lambda c: scale_of(c) * c.tensors["query"].shape[3] ** -0.5),)),
    ("state_not_carried", "the initial state ignored", (replace(RIGHT, start=torch.zeros_like),)),
    ("state_transposed", "the initial state transposed", (replace(RIGHT, start=_transposed),)),
    ("state_returned_transposed", "the final state transposed",
     (replace(RIGHT, final=lambda _, state: _transposed(state)),)),
    ("state_not_returned", "the initial state, or zeros, returned as the final one",
     (replace(RIGHT, final=lambda first, _: first),
      replace(RIGHT, final=lambda _, state: torch.zeros_like(state)))),
    ("chunks_not_joined", "the state lost at every start of a chunk",
     _chunks(lambda state, at: (torch.zeros_like(state), at))),
    ("chunk_decay_lost", "the decay lost at every start of a chunk",
     _chunks(lambda state, at: (state, at._replace(decay=torch.ones_like(at.decay))))),
    ("padding_ignored", "the padding ignored",
     (replace(RIGHT, real=lambda real: real._replace(keep=torch.ones_like(real.keep))),)),
    ("padding_decays", "the state decaying over padding", (replace(RIGHT, padded_decay=True),)),
    ("documents_ignored", "the documents ignored, so the state not emptied",
     (replace(RIGHT, real=lambda real: real._replace(restart=torch.zeros_like(real.restart))),)),
    ("normaliser_missing", "the normaliser missing", (_divided(torch.ones_like),)),
    ("normaliser_eps", "an eps added to the normaliser that is too large",
     tuple(_divided(partial(torch.add, other=eps)) for eps in (1.0, 0.1, 0.01, 1e-3))),
)  # fmt: skip

MISTAKES: tuple[Mistake[Rules], ...] = tuple(Mistake(*each) for each in _TABLE)
"""All named mistakes of recurrences."""
