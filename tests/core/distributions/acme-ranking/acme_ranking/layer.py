"""What the variant runs, and a layer around it."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import Tensor, nn

import attnkit
from attnkit.errors import UnsupportedError
from attnkit.operations.arguments import check_mask, check_tokens


def rank(x: Tensor, *, margin: float) -> Tensor:
    """(B, L, D) to the order of its tokens, (B, L)."""
    return x.sum(-1).argsort(1)


class RankingLayer(nn.Module):
    """Weighs each token by a softmax over the sums of all."""

    def __init__(self, config: attnkit.LayerConfig, **made: Any) -> None:
        super().__init__()
        self.config = config
        placed = {name: made[name] for name in ("device", "dtype")}
        self.projection = nn.Linear(config.embed_dim, config.embed_dim, **placed)

    def forward(
        self, x: Tensor, *, mask: attnkit.Mask = attnkit.full(), state: object = None
    ) -> Tensor:
        """(B, L, D) to (B, L, D)."""
        check_tokens("x", x, self.config.embed_dim, self.projection)
        check_mask(mask)
        if mask.parts or mask.is_causal:
            raise UnsupportedError(f"mask: 'acme_by_sum' sees all tokens, got {mask!r}")
        if state is not None:
            raise UnsupportedError("state: 'acme_by_sum' needs all tokens at once")
        return self.projection(x) * x.sum(-1, keepdim=True).softmax(1)

    def init_state(self, batch_size: int) -> NoReturn:
        """Refuse: there is none."""
        raise UnsupportedError("state: 'acme_by_sum' needs all tokens at once")
