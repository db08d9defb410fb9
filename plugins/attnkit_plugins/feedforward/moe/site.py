"""A mixture of experts in place of a dense feed-forward layer (sparse upcycling).

Every expert starts as a copy of the dense network and the gates of a token sum to 1, so that the
layer computes what the dense one computes until it is trained. The router starts at random: while
all experts are equal the outputs teach it nothing; it learns from the balancing loss, and from
the outputs as soon as the experts, which see different tokens, differ.

Source: Komatsuzaki et al. 2022, https://arxiv.org/abs/2212.05055, section 3; with gates that sum
to 1, which they find to matter for a smooth start (section 5).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnkit_plugins.feedforward.moe import MoEConfig, MoESiteOptions
from attnkit_plugins.feedforward.moe.layer import MoELayer

if TYPE_CHECKING:
    from attnkit.hosts.parts import Weights
    from attnkit.interface import Variant


def upcycle(weights: Weights, options: MoESiteOptions, *, variant: Variant) -> MoELayer:
    """Build the layer from the weights of one network, see `attnkit.swaps.feedforward_site`."""
    gate, up = weights.gate_up[0].chunk(2)
    config = MoEConfig(
        embed_dim=gate.shape[1],
        hidden_dim=gate.shape[0],
        num_experts=options.num_experts or 1,
        top_k=options.top_k or 2,
        implementation=options.implementation,
    )
    return MoELayer.from_dense(config, gate, up, weights.down[0], variant=variant)
