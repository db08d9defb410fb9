"""A few chunks with a decay per key channel, by halving.

exp(c_i - c_j) does not factor into exp(c_i) exp(-c_j): the second overflows. But where a boundary
lies between j and i it factors into two decays <= 1, up to the boundary and from it. So a block of
2s tokens is: the scores within its first and within its second half of s tokens, and between them

    (q_i exp(sum of g from the middle to i)) . (k_j exp(sum of g after j up to the middle)).

It is built up from blocks of one token. The sums too: no large sums are ever subtracted, so
decays of any strength, -inf included, keep full precision. Letters as in
`attnkit.kernels.chunks`; M blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from attnkit.kernels import chunks


def span(
    query: Tensor, key: Tensor, value: Tensor, state: Tensor, log_decay: Tensor
) -> tuple[Tensor, Tensor]:
    """Run N chunks; see `attnkit.kernels.chunks.scan`."""
    query, key = query[:, :, None], key[:, :, None]  # (B, G, 1, N, C, E)
    scores, upto, after = _scores(query, key, log_decay)
    inside = scores @ value  # (B, G, R, N, C, Ev)
    added = (key * after.exp()).mT @ value  # (B, G, R, N, E, Ev)
    factors = upto[..., -1, :, None].exp().unbind(3)  # (B, G, R, E, 1) each
    before, state = chunks.carry(state, added.unbind(3), factors)
    return inside + (query * upto.exp()) @ torch.stack(before, 3), state


def _scores(query: Tensor, key: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the decayed scores and the sums of decays.

    Returns:
        Scores, (B, G, R, N, C, C), 0 where j > i; the sums of g up to token i, itself included,
        and after token i, (B, G, R, N, C, E).
    """
    length = log_decay.shape[-2]
    extra = (1 << (length - 1).bit_length()) - length
    if extra:
        # to a power of two: tokens of zeros behind the others change nothing
        query, key, log_decay = (pad(x, (0, 0, 0, extra)) for x in (query, key, log_decay))
    size = 1
    scores = (query * key).sum(-1)[..., None, None]  # (B, G, 1, N, M, s, s) with s = 1
    scores = scores.expand(*log_decay.shape[:-1], 1, 1)
    upto = log_decay.unsqueeze(-2)  # (B, G, R, N, M, s, E)
    after = torch.zeros_like(upto)
    while size < length:
        first, second = _halves(scores)
        upto_1, upto_2 = _halves(upto)
        after_1, after_2 = _halves(after)
        _, query_2 = _halves(torch.unflatten(query, -2, (-1, size)))
        key_1, _ = _halves(torch.unflatten(key, -2, (-1, size)))
        between = (query_2 * upto_2.exp()) @ (key_1 * after_1.exp()).mT  # (B, G, R, N, M, s, s)
        upper = torch.cat((first, torch.zeros_like(first)), -1)
        scores = torch.cat((upper, torch.cat((between, second), -1)), -2)
        whole_1, whole_2 = upto_1[..., -1:, :], upto_2[..., -1:, :]
        upto = torch.cat((upto_1, upto_2 + whole_1), -2)
        after = torch.cat((after_1 + whole_2, after_2), -2)
        size *= 2
    kept = slice(length)
    scores, upto, after = (x.squeeze(-3) for x in (scores, upto, after))
    return scores[..., kept, kept], upto[..., kept, :], after[..., kept, :]


def _halves(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Split (..., M, s, width) into every first and every second block, (..., M/2, s, width)."""
    first, second = torch.unflatten(blocks, -3, (-1, 2)).unbind(-3)
    return first, second
