"""Gated linear attention as a layer: projections, decays, a norm and an output gate."""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

import torch
from torch import nn
from torch.nn.functional import logsigmoid, silu

from attnkit.masks.constructors import full
from attnkit.operations.arguments import check_mask, check_state, check_tokens
from attnkit.operations.recurrence import recurrence
from attnkit.operations.recurrence_run import layout_of
from attnkit.state import RecurrentState
from attnkit_plugins.recurrence.gated_linear import GatedLinearOptions

if TYPE_CHECKING:
    from torch import Tensor

    from attnkit.interface import Variant
    from attnkit.masks.constructors import Mask
    from attnkit_plugins.recurrence.gated_linear import GatedLinearConfig


class GatedLinearLayer(nn.Module):
    """y = W_out (rms_norm(o) * silu(W_gate x)), with o from the recurrence, normed per head.

    Attributes:
        q_proj: Linear, (D) to (G E).
        k_proj: Linear, (D) to (G E).
        v_proj: Linear, (D) to (H Ev).
        gate_proj: Linear, (D) to (H Ev).
        out_proj: Linear, (H Ev) to (D).
        decay_proj: From (D): to (H E) through ``gate_rank``, or to (H); None for fixed decays.
        norm_weight: (Ev,).
    """

    def __init__(
        self,
        config: GatedLinearConfig,
        *,
        variant: Variant,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.variant = variant
        self.options = GatedLinearOptions(chunk_size=config.chunk_size)
        width, heads = config.embed_dim, config.num_heads

        def linear(inputs: int, outputs: int, *, bias: bool = config.projection_bias) -> nn.Linear:
            return nn.Linear(inputs, outputs, bias=bias, device=device, dtype=dtype)

        self.q_proj = linear(width, config.groups * config.key_width)
        self.k_proj = linear(width, config.groups * config.key_width)
        self.v_proj = linear(width, heads * config.value_width)
        self.gate_proj = linear(width, heads * config.value_width)
        self.out_proj = linear(heads * config.value_width, width)
        self.decay_proj: nn.Module | None = None
        if config.decay == "channel":
            self.decay_proj = nn.Sequential(
                linear(width, config.gate_rank, bias=False),
                linear(config.gate_rank, heads * config.key_width, bias=True),
            )
        elif config.decay == "head":
            self.decay_proj = linear(width, heads, bias=True)
        self.norm_weight = nn.Parameter(torch.ones(config.value_width, device=device, dtype=dtype))

    def init_state(self, batch_size: int) -> RecurrentState:
        """Return the state before the first token."""
        config, weight = self.config, self.k_proj.weight
        shape = (batch_size, config.num_heads, config.key_width, config.value_width)
        memory = weight.new_zeros(shape, dtype=torch.promote_types(weight.dtype, torch.float32))
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
        config = self.config
        before = self.init_state(x.shape[0]) if state is None else state
        keep = layout_of(mask, x.shape[0], before.tokens, x.shape[1]).keep
        if keep is not None:
            # NaN in padding would reach the gradients of the weights
            x = torch.where(keep[..., None], x, x.new_zeros(()))
        out, memory = recurrence(
            _heads(self.q_proj(x), config.groups),
            _heads(self.k_proj(x), config.groups),
            _heads(self.v_proj(x), config.num_heads),
            variant=self.variant,
            log_decay=self.log_decay(x),
            scale=config.key_width**-0.5 if config.scale is None else config.scale,
            mask=mask,
            seen=before.tokens,
            initial_state=before.memory,
            options=self.options,
            implementation=config.implementation,
        )  # (B, H, L, Ev)
        y: Tensor = self.out_proj(self._normed(out.transpose(1, 2), self.gate_proj(x)))
        if state is None:
            return y
        return y, RecurrentState(memory, before.tokens + x.shape[1], before.inputs)

    def log_decay(self, x: Tensor) -> Tensor:
        """Return the natural logarithms of the decays of tokens x, (B, L, D).

        Returns:
            (B, H, L, E) for decays per channel, else (B, H, L); in at least float32.
        """
        heads = self.config.num_heads
        wide = torch.promote_types(x.dtype, torch.float32)
        if self.decay_proj is None:
            exponents = torch.arange(-5, -5 - heads, -1, device=x.device, dtype=wide)
            fixed = torch.log1p(-torch.exp2(exponents))  # (H,)
            return fixed[:, None].expand(x.shape[0], heads, x.shape[1])
        gates = logsigmoid(self.decay_proj(x).to(wide)) / self.config.gate_temperature
        return _heads(gates, heads) if self.config.decay == "channel" else gates.transpose(1, 2)

    def _normed(self, out: Tensor, gate: Tensor) -> Tensor:
        """(B, L, H, Ev) and (B, L, H Ev) -> (B, L, H Ev)."""
        wide = torch.promote_types(out.dtype, torch.float32)
        out, weight = out.to(wide), self.norm_weight.to(wide)
        size = torch.rsqrt(out.square().mean(-1, keepdim=True) + self.config.norm_eps)
        normed = (out * size * weight).flatten(2) * silu(gate.to(wide))
        return normed.to(gate.dtype)

    def _check(self, x: Tensor, state: RecurrentState | None) -> None:
        width, dtype = self.config.embed_dim, self.q_proj.weight.dtype
        check_tokens("x", x, width, dtype)
        if state is not None:
            check_state(state, RecurrentState, x.shape[0])


def _heads(x: Tensor, heads: int) -> Tensor:
    """(B, L, heads * width) -> (B, heads, L, width)."""
    return torch.unflatten(x, -1, (heads, -1)).transpose(1, 2)
