"""A few chunks with one decay per head: decays are a factor of each score q . k.

q . k and the products with the state are done once for all heads of a group. Letters as in
`chunked`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor


def span(
    query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Run N chunks.

    Args:
        query: (B, G, N, C, E), scaled.
        key: (B, G, N, C, E).
        value: (B, G, R, N, C, Ev).
        log_decay: (B, G, R, N, C), any dtype.
        state: (B, G, R, E, Ev), before the first chunk.

    Returns:
        The outputs, (B, G, R, N, C, Ev), and the state after the last chunk.
    """
    heads_and_width = (value.shape[2], value.shape[-1])
    log_decay = log_decay.to(value.dtype)
    # torch leaves apply untyped
    decays: Tensor = Decays.apply(log_decay)  # type: ignore[no-untyped-call]
    upto = log_decay.cumsum(-1).exp()  # (B, G, R, N, C)
    scores = query @ key.mT  # (B, G, N, C, C)
    inside = (decays * scores[:, :, None]) @ value  # (B, G, R, N, C, Ev)

    # the last row holds what each token keeps until the end of the chunk
    carried = value * decays[..., -1, :, None]
    added = key.mT @ carried.movedim(2, -2).flatten(-2)  # (B, G, N, E, R Ev)
    added = torch.unflatten(added, -1, heads_and_width)
    before, state = _states(added, upto[..., -1:], state)
    outside = query @ before.flatten(-2)  # (B, G, N, C, R Ev)
    outside = torch.unflatten(outside, -1, heads_and_width).movedim(-2, 2) * upto[..., None]
    return inside + outside, state


def _states(added: Tensor, decays: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Carry the state from chunk to chunk.

    Args:
        added: (B, G, N, E, R, Ev), what each chunk adds.
        decays: (B, G, R, N, 1), of each chunk.
        state: (B, G, R, E, Ev).

    Returns:
        The states before each chunk, (B, G, N, E, R, Ev), and the one after all.
    """
    state = state.movedim(2, 3)  # (B, G, E, R, Ev)
    factors = decays[:, :, None].unbind(4)  # (B, G, 1, R, 1) each
    before = []
    for factor, new in zip(factors, added.unbind(2), strict=True):
        before.append(state)
        state = torch.addcmul(new, state, factor)
    return torch.stack(before, 2), state.movedim(3, 2)


class Decays(torch.autograd.Function):
    """exp of the sum of g over tokens j + 1 to i where j <= i, else 0: (..., C) to (..., C, C).

    A function of its own so that autograd keeps one such matrix, not three.
    """

    @staticmethod
    def forward(ctx: Any, log_decay: Tensor) -> Tensor:
        """Sum up each pair's own terms."""
        # the difference of two running sums would lose digits after a strong decay
        size = log_decay.shape[-1]
        sums = log_decay[..., :, None].expand(*log_decay.shape, size).tril(-1).cumsum_(-2)
        decays = sums.exp_().tril_()
        ctx.save_for_backward(decays)
        return decays

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """g_m is in the sums of all pairs with j < m <= i."""
        (decays,) = ctx.saved_tensors
        change = (grads[0] * decays).tril(-1)
        # entries of rows i >= m, less those of them with j >= m
        grad: Tensor = (change.sum(-1) - change.sum(-2)).flip(-1).cumsum(-1).flip(-1)
        return grad
