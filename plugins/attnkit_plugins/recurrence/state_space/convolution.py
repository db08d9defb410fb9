"""A short causal convolution over time, each channel by itself, that can stop and go on.

It keeps apart what the recurrence keeps apart: padding is as if it were not there, and a document
does not see the one before it. Further letters: C channels, K tokens that the convolution sees.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

if TYPE_CHECKING:
    from attnkit.operations.recurrence_run import Layout


def convolve(
    x: Tensor, past: Tensor, weight: Tensor, bias: Tensor | None, layout: Layout
) -> tuple[Tensor, Tensor]:
    """Convolve the tokens of x with those before them.

        y_t = bias + sum_{d < K} weight[K - 1 - d] * x_{t - d}

    Args:
        x: (B, L, C), 0 at padding.
        past: (B, C, K - 1), the inputs before x, zeros before the first token.
        weight: (C, K), the token itself last.
        bias: (C,), or None.
        layout: Where padding is and where documents begin.

    Returns:
        y, (B, L, C), in the dtype of ``weight``, and the inputs before the next token, shaped as
        ``past``.
    """
    length, taps = x.shape[1], weight.shape[1]
    inputs = torch.cat((past.mT, x), 1)  # (B, K - 1 + L, C)
    document = _documents(layout, taps - 1)  # (B, K - 1 + L), or None
    y = weight.new_zeros(()) if bias is None else bias
    for tap in range(taps):
        seen = inputs[:, tap : tap + length]  # (B, L, C)
        if document is not None:
            same = document[:, tap : tap + length] == document[:, taps - 1 :]
            seen = torch.where(same[..., None], seen, seen.new_zeros(()))
        y = torch.addcmul(y, seen.to(weight.dtype), weight[:, tap])
    return y, _last(inputs, document, layout, taps - 1).mT


def _documents(layout: Layout, past: int) -> Tensor | None:
    """Number the documents of the past inputs and of x; the past is all in number 0."""
    if layout.starts is None:
        return None
    return pad(layout.starts.long().cumsum(1), (past, 0))


def _last(inputs: Tensor, document: Tensor | None, layout: Layout, count: int) -> Tensor:
    """Return the last ``count`` inputs up to the last real token, (B, K - 1, C)."""
    length = inputs.shape[1] - count
    if layout.keep is None:
        index = torch.arange(length, length + count, device=inputs.device)
        index = index.expand(inputs.shape[0], -1)  # (B, K - 1)
    else:
        numbers = torch.arange(1, length + 1, device=inputs.device)
        padded = pad(layout.keep * numbers, (1, 0))  # (B, 1 + L), number of each real token
        index = padded.amax(1, keepdim=True) + torch.arange(count, device=inputs.device)
    last = inputs.gather(1, index[..., None].expand(-1, -1, inputs.shape[2]))
    if document is None or count == 0:
        return last
    document = document.gather(1, index)
    # those of an earlier document must not be seen by the next token
    same = document == document[:, -1:]
    return torch.where(same[..., None], last, last.new_zeros(()))
