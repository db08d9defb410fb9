"""The Mamba-2 layer: projections, a short convolution, the recurrence, a gated norm."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, overload

import torch
from torch import nn
from torch.nn.functional import silu, softplus

from attnkit.masks.constructors import full
from attnkit.operations.arguments import check_mask, check_state, check_tokens
from attnkit.operations.recurrence import recurrence
from attnkit.operations.recurrence_run import layout_of
from attnkit.state import RecurrentState
from attnkit_plugins.recurrence.state_space import StateSpaceOptions
from attnkit_plugins.recurrence.state_space.convolution import convolve

if TYPE_CHECKING:
    from torch import Tensor

    from attnkit.interface import Variant
    from attnkit.masks.constructors import Mask
    from attnkit.operations.recurrence_run import Layout
    from attnkit_plugins.recurrence.state_space import StateSpaceConfig


class StateSpaceLayer(nn.Module):
    """A state-space model of each head of x.

        z, u, dt = W_in x;    x', B, C = silu(convolution(u));    y = W_out norm(ssd(x') * silu(z))

    Attributes:
        in_proj: Linear, (D) to z (H Ev), u (H Ev + 2 G E) and dt (H).
        conv_weight: (H Ev + 2 G E, K), the token itself last.
        conv_bias: (H Ev + 2 G E,), or None.
        dt_bias: (H,), added to dt before the softplus.
        A_log: (H,), natural logarithm of -A.
        D: (H,), what of x' goes around the recurrence.
        norm_weight: (H Ev,), of an RMS norm over each of G equal parts.
        out_proj: Linear, (H Ev) to (D).
    """

    def __init__(
        self,
        config: StateSpaceConfig,
        *,
        variant: Variant,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.variant = variant
        self.options = StateSpaceOptions(chunk_size=config.chunk_size)
        inner, channels, heads = config.inner_width, config.conv_width, config.num_heads

        def linear(inputs: int, outputs: int) -> nn.Linear:
            return nn.Linear(
                inputs, outputs, bias=config.projection_bias, device=device, dtype=dtype
            )

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))

        self.in_proj = linear(config.embed_dim, inner + channels + heads)
        self.conv_weight = empty(channels, config.conv_size)
        self.conv_bias = empty(channels) if config.conv_bias else None
        self.dt_bias = empty(heads)
        self.A_log = empty(heads)
        self.D = empty(heads)
        self.norm_weight = empty(inner)
        self.out_proj = linear(inner, config.embed_dim)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights as Mamba-2 does: A from -16 to -1, dt from 0.001 to 0.1, log-uniform."""
        self.in_proj.reset_parameters()
        self.out_proj.reset_parameters()
        bound = self.config.conv_size**-0.5
        nn.init.uniform_(self.conv_weight, -bound, bound)
        if self.conv_bias is not None:
            nn.init.uniform_(self.conv_bias, -bound, bound)
        nn.init.uniform_(self.A_log, 1.0, 16.0).log_()
        nn.init.uniform_(self.dt_bias, math.log(0.001), math.log(0.1)).exp_()
        # the inverse of softplus
        self.dt_bias.add_(torch.log(-torch.expm1(-self.dt_bias)))
        nn.init.ones_(self.D)
        nn.init.ones_(self.norm_weight)

    def init_state(self, batch_size: int) -> RecurrentState:
        """Return the state before the first token."""
        config, weight = self.config, self.conv_weight
        shape = (batch_size, config.num_heads, config.state_size, config.value_width)
        memory = weight.new_zeros(shape, dtype=torch.promote_types(weight.dtype, torch.float32))
        inputs = weight.new_zeros(batch_size, config.conv_width, config.conv_size - 1)
        return RecurrentState(memory, 0, inputs)

    @overload
    def forward(self, x: Tensor, *, mask: Mask = ..., state: None = None) -> Tensor: ...

    @overload
    def forward(
        self, x: Tensor, *, mask: Mask = ..., state: RecurrentState
    ) -> tuple[Tensor, RecurrentState]: ...

    def forward(
        self, x: Tensor, *, mask: Mask = full(), state: RecurrentState | None = None
    ) -> Tensor | tuple[Tensor, RecurrentState]:
        """Mix this and earlier tokens.

        Args:
            x: (B, L, D).
            mask: Padding and documents, of all tokens, those of ``state`` included.
            state: What came before. Without it, ``x`` is the whole sequence.

        Returns:
            y, (B, L, D); with ``state``, the pair of y and the state after ``x``.
        """
        self._check(x, state)
        check_mask(mask)
        config = self.config
        before = self.init_state(x.shape[0]) if state is None else state
        layout = layout_of(mask, x.shape[0], before.tokens, x.shape[1])
        x = _without_padding(x, layout)  # NaN there would reach the gradients of the weights
        widths = (config.inner_width, config.conv_width, config.num_heads)
        z, u, dt = self.in_proj(x).split_with_sizes(widths, -1)
        u = _without_padding(u, layout)  # the projection may have a bias
        with torch.autocast(x.device.type, enabled=False):
            mixed, inputs = self._convolve(u, before.inputs, layout)
            out, memory = self._scan(mixed, dt, mask, before)
            normed = self._norm(out, z)
        y: Tensor = self.out_proj(normed)
        if state is None:
            return y
        return y, RecurrentState(memory, before.tokens + x.shape[1], inputs)

    def _convolve(self, u: Tensor, past: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """(B, L, C) -> x', B and C side by side, (B, L, C), and the next past."""
        bias = None if self.conv_bias is None else _wide(self.conv_bias)
        mixed, inputs = convolve(u, past, _wide(self.conv_weight), bias, layout)
        return silu(mixed), inputs

    def _scan(
        self, mixed: Tensor, dt: Tensor, mask: Mask, before: RecurrentState
    ) -> tuple[Tensor, Tensor]:
        """Run the recurrence: (B, L, C) and dt (B, L, H) -> (B, L, H Ev) and the memory."""
        config = self.config
        group = config.num_groups * config.state_size
        x, b, c = mixed.split_with_sizes((config.inner_width, group, group), -1)
        dt = softplus(_wide(dt) + _wide(self.dt_bias)).transpose(1, 2)  # (B, H, L)
        x = _heads(x, config.num_heads)  # (B, H, L, Ev)
        out, memory = recurrence(
            _heads(c, config.num_groups),  # (B, G, L, E)
            _heads(b, config.num_groups),
            x * dt[..., None],
            variant=self.variant,
            log_decay=-_wide(self.A_log).exp()[:, None] * dt,
            mask=mask,
            seen=before.tokens,
            initial_state=before.memory,
            options=self.options,
            implementation=config.implementation,
        )
        out = out + _wide(self.D)[:, None, None] * x
        return out.transpose(1, 2).flatten(2), memory

    def _norm(self, out: Tensor, z: Tensor) -> Tensor:
        """Gate, then norm each group: (B, L, H Ev) twice -> (B, L, H Ev) in the dtype of z."""
        gated = torch.unflatten(out * silu(_wide(z)), -1, (self.config.num_groups, -1))
        size = torch.rsqrt(gated.square().mean(-1, keepdim=True) + self.config.norm_eps)
        return ((gated * size).flatten(2) * _wide(self.norm_weight)).to(z.dtype)

    def _check(self, x: Tensor, state: RecurrentState | None) -> None:
        width, dtype = self.config.embed_dim, self.in_proj.weight.dtype
        check_tokens("x", x, width, dtype)
        if state is not None:
            check_state(state, RecurrentState, x.shape[0])


def _wide(x: Tensor) -> Tensor:
    """Convert to at least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _heads(x: Tensor, heads: int) -> Tensor:
    """(B, L, heads * width) -> (B, heads, L, width)."""
    return torch.unflatten(x, -1, (heads, -1)).transpose(1, 2)


def _without_padding(x: Tensor, layout: Layout) -> Tensor:
    """Zero the padding of (B, L, width)."""
    if layout.keep is None:
        return x
    return torch.where(layout.keep[..., None], x, x.new_zeros(()))
