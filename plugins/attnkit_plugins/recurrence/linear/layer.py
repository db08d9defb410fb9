"""Linear attention as a layer: four projections around `attnkit.recurrence`."""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

import torch
from torch import nn

from attnkit.masks.constructors import full
from attnkit.operations.arguments import check_mask, check_state, check_tokens
from attnkit.operations.recurrence import recurrence
from attnkit.operations.recurrence_run import layout_of
from attnkit.state import RecurrentState
from attnkit_plugins.recurrence.linear import LinearOptions

if TYPE_CHECKING:
    from torch import Tensor

    from attnkit.interface import Variant
    from attnkit.masks.constructors import Mask
    from attnkit_plugins.recurrence.linear import LinearConfig


class LinearLayer(nn.Module):
    """Causal linear attention of x to itself.

    Attributes:
        q_proj: Linear, (D) to (H E).
        k_proj: Linear, (D) to (Hkv E).
        v_proj: Linear, (D) to (Hkv Ev).
        out_proj: Linear, (H Ev) to (D).
    """

    def __init__(
        self,
        config: LinearConfig,
        *,
        variant: Variant,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.variant = variant
        self.options = LinearOptions(
            feature_map=config.feature_map, eps=config.eps, chunk_size=config.chunk_size
        )

        def linear(inputs: int, outputs: int) -> nn.Linear:
            return nn.Linear(
                inputs, outputs, bias=config.projection_bias, device=device, dtype=dtype
            )

        self.q_proj = linear(config.embed_dim, config.num_heads * config.key_width)
        self.k_proj = linear(config.embed_dim, config.kv_heads * config.key_width)
        self.v_proj = linear(config.embed_dim, config.kv_heads * config.value_width)
        self.out_proj = linear(config.num_heads * config.value_width, config.embed_dim)

    def init_state(self, batch_size: int) -> RecurrentState:
        """Return the state before the first token."""
        config, weight = self.config, self.k_proj.weight
        shape = self.options.state_shape(config.key_width, config.value_width)
        memory = weight.new_zeros(
            (batch_size, config.num_heads, *shape),
            dtype=torch.promote_types(weight.dtype, torch.float32),
        )
        return RecurrentState(memory, 0, weight.new_zeros(batch_size, 0, 0))

    @overload
    def forward(self, x: Tensor, *, mask: Mask = ..., state: None = None) -> Tensor: ...

    @overload
    def forward(
        self, x: Tensor, *, mask: Mask = ..., state: RecurrentState
    ) -> tuple[Tensor, RecurrentState]: ...

    def forward(
        self, x: Tensor, *, mask: Mask = full(), state: RecurrentState | None = None
    ) -> Tensor | tuple[Tensor, RecurrentState]:
        """Attend to this and earlier tokens.

        Args:
            x: (B, L, D).
            mask: Padding and documents, of all tokens, those of ``state`` included.
            state: What came before. Without it, ``x`` is the whole sequence.

        Returns:
            y, (B, L, D); with ``state``, the pair of y and the state after ``x``.
        """
        self._check(x, state)
        check_mask(mask)
        before = self.init_state(x.shape[0]) if state is None else state
        keep = layout_of(mask, x.shape[0], before.tokens, x.shape[1]).keep
        if keep is not None:
            # NaN in padding would reach the gradients of the weights
            x = torch.where(keep[..., None], x, x.new_zeros(()))
        per_kv_head = self.config.num_heads // self.config.kv_heads
        key = self._heads(self.k_proj(x), self.config.kv_heads)
        value = self._heads(self.v_proj(x), self.config.kv_heads)
        out, memory = recurrence(
            self._heads(self.q_proj(x), self.config.num_heads),
            key.repeat_interleave(per_kv_head, 1) if per_kv_head > 1 else key,
            value.repeat_interleave(per_kv_head, 1) if per_kv_head > 1 else value,
            variant=self.variant,
            mask=mask,
            seen=before.tokens,
            initial_state=before.memory,
            options=self.options,
            implementation=self.config.implementation,
        )  # (B, H, L, Ev)
        y: Tensor = self.out_proj(out.transpose(1, 2).flatten(2))
        if state is None:
            return y
        return y, RecurrentState(memory, before.tokens + x.shape[1], before.inputs)

    @staticmethod
    def _heads(x: Tensor, heads: int) -> Tensor:
        """(B, L, heads * width) -> (B, heads, L, width)."""
        return torch.unflatten(x, -1, (heads, -1)).transpose(1, 2)

    def _check(self, x: Tensor, state: RecurrentState | None) -> None:
        width, dtype = self.config.embed_dim, self.q_proj.weight.dtype
        check_tokens("x", x, width, dtype)
        if state is not None:
            check_state(state, RecurrentState, x.shape[0])
