"""A router and its experts as a layer; the routing is in `routing`, the experts in `loop`."""

from __future__ import annotations

from typing import Literal, Self, overload

import torch
from torch import Tensor, nn

from attnkit.choice.front import choose
from attnkit.choice.outputs import check_output
from attnkit.choice.transforms import transforms
from attnkit.errors import ShapeError, UnsupportedError
from attnkit.hosts import parts
from attnkit.interface import Variant
from attnkit.layers import MadeLayer, New
from attnkit.masks import Mask, Padding, Sizes, full, real_tokens, zero_padding
from attnkit.operations.arguments import check_mask, check_state, check_tokens, dtype_name
from attnkit.problem import FeedforwardProblem
from attnkit.state import Stateless
from attnkit_plugins.feedforward.moe import MoEConfig
from attnkit_plugins.feedforward.moe.router import Router, Routing, route
from attnkit_plugins.feedforward.moe.weights import ExpertWeights


class MoELayer(MadeLayer[MoEConfig]):
    """A feed-forward layer of experts; no token looks at another.

    Attributes:
        router: Linear, (D) to (E), without bias; runs in at least float32.
        gate_up_proj: (E, 2F, D), W_gate above W_up.
        down_proj: (E, D, F).
    """

    def make(self, new: New) -> None:
        """Set the parameters."""
        config = self.config
        count, width, hidden = config.num_experts, config.embed_dim, config.hidden_dim
        self.router = Router(width, count, bias=False, device=new.device, dtype=new.dtype)
        self.gate_up_proj = new.empty(count, 2 * hidden, width)
        self.down_proj = new.empty(count, width, hidden)
        self.reset_parameters()

    @classmethod
    def from_dense(
        cls,
        config: MoEConfig,
        gate_proj: Tensor,
        up_proj: Tensor,
        down_proj: Tensor,
        *,
        variant: Variant,
    ) -> Self:
        """Build a layer whose experts are copies of one dense SwiGLU network.

        With ``renormalise`` it computes what the dense network computes, until it is trained.

        Args:
            config: Of the layer to build.
            gate_proj: (F, D).
            up_proj: (F, D).
            down_proj: (D, F).
            variant: The variant the layer belongs to.
        """
        wanted = (config.hidden_dim, config.embed_dim)
        shapes = [tuple(gate_proj.shape), tuple(up_proj.shape), tuple(down_proj.T.shape)]
        if any(shape != wanted for shape in shapes):
            raise ShapeError(
                f"gate_proj, up_proj and down_proj.T must be (hidden_dim, embed_dim) = {wanted}, "
                f"got {', '.join(map(str, shapes))}"
            )
        layer = cls(config, variant=variant, device=up_proj.device, dtype=up_proj.dtype)
        with torch.no_grad():
            layer.gate_up_proj.copy_(torch.cat((gate_proj, up_proj)))
            layer.down_proj.copy_(down_proj)
        return layer

    def reset_parameters(self) -> None:
        """Draw all weights as `torch.nn.Linear` does: uniform within 1 / sqrt(inputs)."""
        self.router.reset_parameters()
        for weight in (self.gate_up_proj, self.down_proj):
            bound = weight.shape[-1] ** -0.5
            nn.init.uniform_(weight, -bound, bound)

    def init_state(self, batch_size: int) -> Stateless:
        """Return the state before the first token; it only counts tokens."""
        return Stateless(batch_size)

    @overload
    def forward(
        self,
        x: Tensor,
        *,
        mask: Mask = ...,
        state: None = None,
        return_routing: Literal[False] = False,
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        x: Tensor,
        *,
        mask: Mask = ...,
        state: Stateless,
        return_routing: Literal[False] = False,
    ) -> tuple[Tensor, Stateless]: ...

    @overload
    def forward(
        self, x: Tensor, *, mask: Mask = ..., state: None = None, return_routing: Literal[True]
    ) -> tuple[Tensor, Routing]: ...

    @overload
    def forward(
        self, x: Tensor, *, mask: Mask = ..., state: Stateless, return_routing: Literal[True]
    ) -> tuple[Tensor, Stateless, Routing]: ...

    def forward(
        self,
        x: Tensor,
        *,
        mask: Mask = full(),
        state: Stateless | None = None,
        return_routing: bool = False,
    ) -> (
        Tensor
        | tuple[Tensor, Stateless]
        | tuple[Tensor, Routing]
        | tuple[Tensor, Stateless, Routing]
    ):
        """Send each token to its experts.

        Args:
            x: (B, L, D).
            mask: Of all tokens, those of ``state`` included. Only its padding matters, as no
                token looks at another.
            state: How many tokens came before; refused with ``capacity_factor``.
            return_routing: Also return what the router decided, last.

        Returns:
            y, (B, L, D), 0 at padding; then the next state, if one was given; then the `Routing`,
            if asked for.
        """
        self._check(x, mask, state)
        seen = 0 if state is None else state.tokens
        keep = _real_tokens(mask, x, seen)  # (B, L)
        x = zero_padding(x, keep)  # it may hold NaN
        with torch.autocast(x.device.type, enabled=False):
            routing = self._route(x, keep)
        y = self._experts(x, routing)  # (B, L, D)
        following = None if state is None else Stateless(x.shape[0], seen + x.shape[1])
        if following is None:
            return (y, routing) if return_routing else y
        return (y, following, routing) if return_routing else (y, following)

    def decided(self, x: Tensor) -> tuple[parts.Routing, parts.Weights]:
        """Return the experts of tokens (T, D); see `attnkit.hosts.parts.Mixture`."""
        keep = torch.ones(1, len(x), dtype=torch.bool, device=x.device)
        with torch.autocast(x.device.type, enabled=False):
            routing = self._route(x[None], keep)
        weights = parts.Weights(self.gate_up_proj, self.down_proj)
        return parts.Routing(routing.experts[0], routing.gates[0]), weights

    def _check(self, x: Tensor, mask: Mask, state: Stateless | None) -> None:
        check_tokens("x", x, self.config.embed_dim, self.down_proj)
        check_mask(mask)
        if state is not None and self.config.capacity_factor is not None:
            raise UnsupportedError(
                "variant 'moe' cannot carry a state with capacity_factor: the capacity depends on "
                "the whole sequence; set capacity_factor=None"
            )
        if state is not None:
            check_state(state, Stateless, x.shape[0])

    def _route(self, x: Tensor, keep: Tensor) -> Routing:
        logits = self.router(x)  # (B, L, E)
        # what took the router's place may compute in half precision
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return route(
            logits,
            keep,
            top_k=self.config.top_k,
            renormalise=self.config.renormalise,
            capacity_factor=self.config.capacity_factor,
        )

    def _experts(self, x: Tensor, routing: Routing) -> Tensor:
        """Run the chosen implementation on the tokens of all samples, (B, L, D)."""
        if not x.numel():
            return x.clone()
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        weights = ExpertWeights(self.gate_up_proj.to(dtype), self.down_proj.to(dtype))
        tokens = x.flatten(0, 1).to(dtype)  # (B * L, D)
        experts, gates = routing.experts.flatten(0, 1), routing.gates.flatten(0, 1)  # (B * L, k)
        chosen = choose(self.variant, self._problem(tokens), self.config.implementation)
        with torch.autocast(kind, enabled=False):
            y: Tensor = chosen.function(tokens, experts, gates, weights=weights)
        check_output(chosen.key, "(T, D)", y, tuple(tokens.shape), tokens)
        return y.view(x.shape).to(x.dtype)

    def _problem(self, tokens: Tensor) -> FeedforwardProblem:
        tracked = torch.is_grad_enabled() and (
            tokens.requires_grad or any(weight.requires_grad for weight in self.parameters())
        )
        return FeedforwardProblem(
            device=tokens.device.type,
            dtype=dtype_name(tokens.dtype),
            query_length=len(tokens),
            experts=self.config.num_experts,
            width=self.config.embed_dim,
            gradients=tracked,
            compiling=torch.compiler.is_compiling(),
            transforms=transforms(),
        )


def _real_tokens(mask: Mask, x: Tensor, seen: int) -> Tensor:
    """Return which tokens of ``x`` are no padding, (B, L)."""
    batch, length = x.shape[:2]
    sizes = Sizes(batch, 1, length, seen + length)
    for part in mask.conjuncts():
        # experts have no heads, a mask of the attention beside them may
        if not part.per_head:
            part.check(sizes)
        if "padding" in part.parts and not isinstance(part, Padding):
            raise UnsupportedError(
                f"variant 'moe' cannot tell which tokens {part!r} makes padding; "
                "join padding to other masks with &"
            )
    keep = real_tokens(mask, batch, seen, length)
    if keep is None:
        return torch.ones(batch, length, dtype=torch.bool, device=x.device)
    return keep.to(x.device)
