"""The layer of softmax variants: four projections around `attnkit.attention`."""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

import torch
from torch import Tensor, nn

from attnkit.at_rest import input_like
from attnkit.errors import ArgumentError, ShapeError, UnsupportedError
from attnkit.layers.construction import MadeLayer, New
from attnkit.layers.heads import split_heads
from attnkit.layers.rotary import rotate
from attnkit.layers.softmax_config import SoftmaxConfig
from attnkit.masks.constructors import Documents, Mask, Padding, Sizes, causal, full, sliding_window
from attnkit.masks.padded_tokens import real_tokens, zero_padding
from attnkit.operations.arguments import check_mask, check_state, check_tokens
from attnkit.operations.attention import attention
from attnkit.state import KVCache, Stateless, WindowCache

if TYPE_CHECKING:
    SoftmaxState = KVCache | WindowCache | Stateless


class SoftmaxLayer(MadeLayer[SoftmaxConfig]):
    """Attention of x to itself, or to a context.

    Attributes:
        q_proj: Linear, (D) to (H E).
        k_proj: Linear, (D or context_dim) to (Hkv E).
        v_proj: Linear, (D or context_dim) to (Hkv Ev).
        out_proj: Linear, (H Ev) to (D).
        sinks: (H,), or None without ``config.sinks``.
    """

    def make(self, new: New) -> None:
        """Set the parameters."""
        config = self.config
        width, source = config.embed_dim, config.context_dim or config.embed_dim
        key_width, value_width = config.key_width, config.value_width
        bias = config.projection_bias
        self.q_proj = new.linear(width, config.num_heads * key_width, bias=bias)
        self.k_proj = new.linear(source, config.kv_heads * key_width, bias=bias)
        self.v_proj = new.linear(source, config.kv_heads * value_width, bias=bias)
        self.out_proj = new.linear(config.num_heads * value_width, width, bias=bias)
        self.sinks: nn.Parameter | None = None
        if config.sinks:
            self.sinks = new.filled(0.0, config.num_heads)

    def init_state(self, batch_size: int) -> SoftmaxState:
        """Return the state before the first token.

        Raises:
            UnsupportedError: The layer looks at later tokens, so it cannot run step by step.
        """
        config = self.config
        if config.context_dim is not None:
            return Stateless(batch_size)
        self.check_runs_stepwise(is_causal=self.config.is_causal)
        like = input_like(self)
        kind = like.device.type
        autocast = torch.is_autocast_enabled(kind)
        cache = KVCache.empty(
            batch_size,
            config.kv_heads,
            config.key_width,
            config.value_width,
            dtype=torch.get_autocast_dtype(kind) if autocast else like.dtype,
            device=like.device,
        )
        if config.window_size is None:
            return cache
        needed = config.window_size - 1
        return WindowCache(cache.key, cache.value, size=needed, needed=needed)

    @overload
    def forward(
        self, x: Tensor, *, mask: Mask = ..., context: Tensor | None = None, state: None = None
    ) -> Tensor: ...

    @overload
    def forward(
        self, x: Tensor, *, mask: Mask = ..., context: Tensor | None = None, state: SoftmaxState
    ) -> tuple[Tensor, SoftmaxState]: ...

    def forward(
        self,
        x: Tensor,
        *,
        mask: Mask = full(),
        context: Tensor | None = None,
        state: SoftmaxState | None = None,
    ) -> Tensor | tuple[Tensor, SoftmaxState]:
        """Attend.

        Args:
            x: (B, L, D).
            mask: Of all keys: those of ``state`` and of x, or those of ``context``. It joins
                the configured causal and window masks.
            context: (B, S, context_dim); given exactly where the layer has a ``context_dim``.
            state: What came before. Without it, ``x`` is the whole sequence.

        Returns:
            y, (B, L, D); with ``state``, the pair of y and the state after ``x``.
        """
        self._check(x, context, state)
        check_mask(mask)
        if context is None:
            return self._attend_to_self(x, mask, state)
        mask.check(Sizes(x.shape[0], self.config.num_heads, x.shape[1], context.shape[1]))
        context = zero_padding(context, real_tokens(mask, x.shape[0], 0, context.shape[1]))
        key, value = self._project(context)
        y = self._attend(self._query(x), key, value, self._own_mask() & mask)
        if state is None:
            return y
        return y, Stateless(x.shape[0], state.tokens + x.shape[1])

    def _attend_to_self(
        self, x: Tensor, mask: Mask, state: SoftmaxState | None
    ) -> Tensor | tuple[Tensor, SoftmaxState]:
        seen = 0 if state is None else state.tokens
        batch, length = x.shape[:2]
        mask.check(Sizes(batch, self.config.num_heads, length, seen + length))
        # NaN in padding would reach the gradients of the weights
        x = zero_padding(x, real_tokens(mask, batch, seen, length))
        query, (key, value) = self._query(x), self._project(x)
        base = self.config.rotary_base
        if base is not None:
            query = rotate(query, first=seen, base=base)
            key = rotate(key, first=seen, base=base)
        following: SoftmaxState | None = None
        if isinstance(state, WindowCache):
            key, value, following = state.begun(key).append(key, value)
        elif isinstance(state, KVCache):
            following = state.begun(key).append(key, value)
            key, value = following.key, following.value
        mask = self._own_mask() & drop_first(mask, seen + length - key.shape[2])
        y = self._attend(query, key, value, mask)
        return y if following is None else (y, following)

    def _own_mask(self) -> Mask:
        mask = causal() if self.config.is_causal else full()
        if self.config.window_size is not None:
            mask = mask & sliding_window(self.config.window_size)
        return mask

    def _query(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, H, L, E)."""
        return split_heads(self.q_proj(x), self.config.num_heads)

    def _project(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, D) -> (B, Hkv, S, E) and (B, Hkv, S, Ev)."""
        heads = self.config.kv_heads
        return split_heads(self.k_proj(source), heads), split_heads(self.v_proj(source), heads)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Mask) -> Tensor:
        config = self.config
        out = attention(
            query,
            key,
            value,
            mask=mask,
            scale=config.scale,
            softcap=config.softcap,
            sinks=self.sinks,
            dropout_p=config.dropout_p if self.training else 0.0,
            variant=self.variant,
            implementation=config.implementation,
        )  # (B, H, L, Ev)
        y: Tensor = self.out_proj(out.transpose(1, 2).flatten(2))
        return y

    def _check(self, x: Tensor, context: Tensor | None, state: SoftmaxState | None) -> None:
        config = self.config
        check_tokens("x", x, config.embed_dim, self.q_proj)
        if (context is None) != (config.context_dim is None):
            given, wanted = ("no", "a") if context is None else ("a", "no")
            raise ArgumentError(
                f"got {given} context, but the layer was made with {wanted} context_dim; "
                "give a context (B, S, context_dim) exactly where the layer has one"
            )
        if context is not None and config.context_dim is not None:
            check_tokens("context", context, config.context_dim, self.k_proj)
            if context.shape[0] != x.shape[0]:
                raise ShapeError(
                    f"x and context must share batch size, got x {tuple(x.shape)} and context "
                    f"{tuple(context.shape)}: {x.shape[0]} != {context.shape[0]}"
                )
        if state is None:
            return
        if config.context_dim is None:
            self.check_runs_stepwise(is_causal=self.config.is_causal)
        expected = (
            Stateless if context is not None else WindowCache if config.window_size else KVCache
        )
        check_state(state, expected, x.shape[0])


def drop_first(mask: Mask, count: int) -> Mask:
    """Return the mask as it is for all keys but the first ``count``.

    Raises:
        UnsupportedError: Part of it speaks of positions that cannot be shifted.
    """
    if count == 0:
        return mask
    shifted = full()
    for part in mask.conjuncts():
        if isinstance(part, Padding):
            starts = None if part.starts is None else (part.starts - count).clamp(min=0)
            lengths = None if part.lengths is None else (part.lengths - count).clamp(min=0)
            shifted = shifted & Padding(starts, lengths)
        elif isinstance(part, Documents):
            shifted = shifted & Documents(part.ids[:, count:])
        elif part.parts <= {"window"}:
            # causal and windows look at distances alone
            shifted = shifted & part
        else:
            raise UnsupportedError(
                f"a window's state cannot apply the mask {part!r}: the first {count} keys are no "
                "longer held; use padding, documents or a layer without window_size"
            )
    return shifted
