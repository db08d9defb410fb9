"""The single-head layer: three projections, one attention, the weights on request."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

import attnkit
from attnkit.at_rest import input_like
from attnkit.layers import MadeLayer, New
from attnkit.masks import Mask, Sizes, causal, full, hide_padding, real_tokens, zero_padding
from attnkit.operations.arguments import check_mask, check_state, check_tokens
from attnkit.state import KVCache
from attnkit_plugins.softmax.self_attention import SelfAttentionConfig
from attnkit_plugins.softmax.self_attention.plain import weigh


class SelfAttentionLayer(MadeLayer[SelfAttentionConfig]):
    """Attention of x to itself.

    Attributes:
        q_proj: Linear, (D) to (E).
        k_proj: Linear, (D) to (E).
        v_proj: Linear, (D) to (E).
        out_proj: Linear, (E) to (D).
    """

    def make(self, new: New) -> None:
        """Set the parameters."""
        config = self.config
        self.width = config.head_dim or config.embed_dim
        self.q_proj = new.linear(config.embed_dim, self.width, bias=False)
        self.k_proj = new.linear(config.embed_dim, self.width, bias=False)
        self.v_proj = new.linear(config.embed_dim, self.width, bias=False)
        self.out_proj = new.linear(self.width, config.embed_dim, bias=False)

    def init_state(self, batch_size: int) -> KVCache:
        """Return the state before the first token.

        Raises:
            UnsupportedError: The layer looks at later tokens, so it cannot run step by step.
        """
        self.check_runs_stepwise(is_causal=self.config.is_causal)
        like = input_like(self)
        kind = like.device.type
        autocast = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if autocast else like.dtype
        width = self.width
        return KVCache.empty(batch_size, 1, width, width, dtype=dtype, device=like.device)

    @overload
    def forward(
        self,
        x: Tensor,
        *,
        mask: Mask = ...,
        state: None = None,
        need_weights: Literal[False] = False,
    ) -> Tensor: ...
    @overload
    def forward(
        self, x: Tensor, *, mask: Mask = ..., state: None = None, need_weights: Literal[True]
    ) -> tuple[Tensor, Tensor]: ...
    @overload
    def forward(
        self, x: Tensor, *, mask: Mask = ..., state: KVCache, need_weights: Literal[False] = False
    ) -> tuple[Tensor, KVCache]: ...
    @overload
    def forward(
        self, x: Tensor, *, mask: Mask = ..., state: KVCache, need_weights: Literal[True]
    ) -> tuple[Tensor, KVCache, Tensor]: ...
    def forward(
        self,
        x: Tensor,
        *,
        mask: Mask = full(),
        state: KVCache | None = None,
        need_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor] | tuple[Tensor, KVCache] | tuple[Tensor, KVCache, Tensor]:
        """Attend.

        Args:
            x: (B, L, D).
            mask: Of all tokens, those of ``state`` included; joins ``is_causal``.
            state: What came before. Without it, ``x`` is the whole sequence.
            need_weights: Also return the weights, last.

        Returns:
            y, (B, L, D); then the next state, if one was given; then the weights (B, L, S), in
            at least float32, if asked for.
        """
        self._check(x, mask, state)
        seen = 0 if state is None else state.tokens
        # NaN in padding would reach the gradients of the weights
        x = zero_padding(x, real_tokens(mask, x.shape[0], seen, x.shape[1]))
        own = causal() if self.config.is_causal else full()
        query, key, value = (
            proj(x)[:, None] for proj in (self.q_proj, self.k_proj, self.v_proj)
        )  # (B, 1, L, E) each
        if state is not None:
            state = state.begun(key).append(key, value)
            key, value = state.key, state.value
        mask = own & mask
        out = attnkit.attention(
            query,
            key,
            value,
            mask=mask,
            variant=self.variant,
            implementation=self.config.implementation,
        )  # (B, 1, L, E)
        y: Tensor = self.out_proj(out[:, 0])
        if not need_weights:
            return y if state is None else (y, state)
        key, _ = hide_padding(mask, key, value)
        weights = weigh(query, key, mask, self.width**-0.5)[:, 0]  # (B, L, S)
        return (y, weights) if state is None else (y, state, weights)

    def _check(self, x: Tensor, mask: Mask, state: KVCache | None) -> None:
        check_tokens("x", x, self.config.embed_dim, self.q_proj)
        check_mask(mask)
        seen = 0
        if state is not None:
            self.check_runs_stepwise(is_causal=self.config.is_causal)
            check_state(state, KVCache, x.shape[0])
            seen = state.tokens
        mask.check(Sizes(x.shape[0], 1, x.shape[1], seen + x.shape[1]))
