"""Self-attention: each token looks at all tokens, in one head.

    y = softmax(scale * (x W_q)(x W_k)^T + masks) (x W_v)

The variant to read first. It has one head and no option that hides what happens; its layer
returns its weights on request.

Source: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, eq. 1.
"""

from __future__ import annotations

from pydantic import Field

import attnkit
from attnkit.kernels.implementations import SOFTMAX, reference_softmax
from attnkit.problem import SoftmaxProblem


class SelfAttentionConfig(attnkit.LayerConfig):
    """Configuration of the single-head layer."""

    head_dim: int | None = Field(
        default=None, gt=0, description="E, width of query, key and value; None for embed_dim"
    )
    is_causal: bool = Field(default=False, description="hide later tokens")


def _reference_cost(problem: SoftmaxProblem) -> float:
    return 100e-6 + 40e-9 * problem.batch * problem.query_length * problem.key_length


def _plain_cost(problem: SoftmaxProblem) -> float:
    # never the cheapest: this one is for reading
    return 60e-6 + 6e-9 * problem.batch * problem.query_length * problem.key_length


_PROMISES = SOFTMAX.model_copy(
    update={"heads": "one", "gqa": False, "bias": False, "softcap": False, "sinks": False}
)

VARIANT = attnkit.Variant(
    name="self_attention",
    family="softmax",
    summary="Self-attention in one head, to read; returns its weights on request.",
    source="Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, eq. 1",
    relation="exact",
    promises=_PROMISES.model_copy(
        update={"weights": True, "state": True, "reorder": True, "truncate": True}
    ),
    config=SelfAttentionConfig,
    layer="attnkit_plugins.softmax.self_attention.layer:SelfAttentionLayer",
    layer_definition="attnkit_plugins.softmax.self_attention.definition:self_attention",
    implementations=(
        reference_softmax(_PROMISES, _reference_cost),
        attnkit.Implementation(
            name="plain",
            function="attnkit_plugins.softmax.self_attention.plain:attend",
            summary="a matrix product, a softmax, a matrix product",
            promises=_PROMISES,
            cost=_plain_cost,
        ),
    ),
)

attnkit_variants = attnkit.hookimpl(lambda: (VARIANT,))
