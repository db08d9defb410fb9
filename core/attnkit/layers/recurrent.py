"""What layers of recurrences share: checks, padding, the state that goes in and comes out."""

from __future__ import annotations

from typing import NamedTuple, overload

import torch
from torch import Tensor, nn

from attnkit.at_rest import input_like
from attnkit.interface import Options
from attnkit.layers.construction import Config, MadeLayer
from attnkit.layers.heads import split_heads as split_heads
from attnkit.masks.constructors import Mask, full
from attnkit.masks.padded_tokens import zero_padding
from attnkit.operations.arguments import check_mask, check_state, check_tokens
from attnkit.operations.recurrence import recurrence
from attnkit.operations.recurrence_run import Layout, layout_of
from attnkit.state import RecurrentState


class Past(NamedTuple):
    """What a call is told about its tokens, and about those before them.

    Attributes:
        state: What came before.
        mask: Padding and documents of all tokens, those of the state included.
        layout: What the mask says about the tokens of the call.
    """

    state: RecurrentState
    mask: Mask
    layout: Layout

    def beside(self, held: Tensor, like: Tensor, dtype: torch.dtype) -> Tensor:
        """Return what the state holds; before the first token, in the kind that token came in."""
        return held if self.state.tokens else held.to(like.device, dtype)


class RecurrentLayer(MadeLayer[Config]):
    """A layer around one call of `attnkit.recurrence`, causal and with a state.

    A variant's layer sets in `make` its projections, ``out_proj`` among them, and the attributes
    below; it says in `mix` what goes into the recurrence and what becomes of its outputs.

    Attributes:
        options: Of the variant.
        memory_shape: (H, E', Ew), what the recurrence carries for each sample.
        inputs_shape: (C, K - 1), what a short convolution carries.
        out_proj: Linear, to (D).
    """

    options: Options
    memory_shape: tuple[int, int, int]
    inputs_shape: tuple[int, int] = (0, 0)
    out_proj: nn.Linear

    def mix(self, x: Tensor, past: Past) -> tuple[Tensor, Tensor, Tensor]:
        """Compute what `out_proj` takes.

        Args:
            x: (B, L, D), 0 at padding.
            past: What came before.

        Returns:
            Outputs (B, L, H Ev), and the memory and inputs of the state after x.
        """
        raise NotImplementedError  # every layer's own

    def init_state(self, batch_size: int) -> RecurrentState:
        """Return the state before the first token."""
        like = input_like(self)
        wide = torch.promote_types(like.dtype, torch.float32)
        memory = like.new_zeros((batch_size, *self.memory_shape), dtype=wide)
        return RecurrentState(memory, 0, like.new_zeros(batch_size, *self.inputs_shape))

    @overload
    def forward(self, x: Tensor, *, mask: Mask = ..., state: None = None) -> Tensor: ...

    @overload
    def forward(
        self, x: Tensor, *, mask: Mask = ..., state: RecurrentState
    ) -> tuple[Tensor, RecurrentState]: ...

    def forward(
        self, x: Tensor, *, mask: Mask = full(), state: RecurrentState | None = None
    ) -> Tensor | tuple[Tensor, RecurrentState]:
        """Mix this and earlier tokens; see `attnkit.interface.Layer`.

        The mask may hold padding and documents.
        """
        check_tokens("x", x, self.config.embed_dim, self.out_proj)
        if state is not None:
            check_state(state, RecurrentState, x.shape[0])
        check_mask(mask)
        before = self.init_state(x.shape[0]) if state is None else state
        layout = layout_of(mask, x.shape[0], before.tokens, x.shape[1])
        # NaN in padding would reach the gradients of the weights
        x = zero_padding(x, layout.keep)
        out, memory, inputs = self.mix(x, Past(before, mask, layout))
        y: Tensor = self.out_proj(out)
        if state is None:
            return y
        return y, RecurrentState(memory, before.tokens + x.shape[1], inputs)

    def recur(
        self,
        past: Past,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        log_decay: Tensor | None = None,
        scale: float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run the recurrence on from the past; see `attnkit.recurrence`.

        Returns:
            The outputs, (B, L, H, Ev), and the memory after them.
        """
        wide = torch.promote_types(value.dtype, torch.float32)
        out, memory = recurrence(
            query,
            key,
            value,
            variant=self.variant,
            log_decay=log_decay,
            scale=scale,
            mask=past.mask,
            seen=past.state.tokens,
            initial_state=past.beside(past.state.memory, value, wide),
            options=self.options,
            implementation=self.config.implementation,
        )
        return out.transpose(1, 2), memory
