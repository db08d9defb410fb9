"""Multi-head attention: softmax attention in H heads, whatever the mask.

    head_h = softmax(scale * q_h K^T + masks) V,    y = [head_1 ... head_H] W_out

With fewer key/value heads than query heads it is grouped-query attention (Ainslie et al. 2023,
https://arxiv.org/abs/2305.13245), with one of them multi-query attention (Shazeer 2019,
https://arxiv.org/abs/1911.02150). Attending to a context instead of to itself, it is
cross-attention. This is the variant to start from: it takes every argument.

Source: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.2.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attnkit
from attnkit.configs import SoftmaxConfig
from attnkit.promises import ALL_DTYPES, ALL_MASK_PARTS, Promises

if TYPE_CHECKING:
    from attnkit.problem import Problem


class MultiHeadConfig(SoftmaxConfig):
    """Configuration of the multi-head layer."""


def _logits(problem: Problem) -> float:
    return problem.batch * problem.heads * problem.query_length * problem.key_length


def _reference_cost(problem: Problem) -> float:
    return 100e-6 + 40e-9 * _logits(problem)


def _eager_cost(problem: Problem) -> float:
    # seconds per logit: softmax and masks, then two products of its width
    passes = 3 if problem.gradients else 1
    widths = problem.head_dim + problem.value_head_dim
    return passes * (40e-6 + (1.5e-9 + 1.2e-11 * widths) * _logits(problem))


def _sdpa_cost(problem: Problem) -> float:
    passes = 3 if problem.gradients else 1
    widths = problem.head_dim + problem.value_head_dim
    each = (2.0e-9 if problem.mask_parts or problem.bias else 0.4e-9) + 1.2e-11 * widths
    if problem.heads != problem.kv_heads:
        # torch's grouped heads are slow for few queries
        each *= 4 if problem.query_length < 16 else 1
    if problem.dtype in ("bfloat16", "float16") and problem.query_length < 16:
        each *= 4
    return passes * (15e-6 + each * _logits(problem))


_EVERYTHING = Promises(
    causal=True,
    bidirectional=True,
    cross=True,
    masks=ALL_MASK_PARTS,
    gqa=True,
    value_width=True,
    bias=True,
    scale=True,
    softcap=True,
    sinks=True,
    dropout=True,
    gradients=True,
    dtypes=ALL_DTYPES,
    devices=("cpu", "cuda"),
    deterministic=True,
    compile=True,
)

VARIANT = attnkit.Variant(
    name="multi_head",
    family="softmax",
    summary="Multi-head attention: MHA, GQA, MQA and cross-attention, with every option.",
    source="Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.2.2",
    relation="exact",
    promises=_EVERYTHING.model_copy(update={"state": True, "reorder": True, "truncate": True}),
    config=MultiHeadConfig,
    layer="attnkit.layers:SoftmaxLayer",
    implementations=(
        attnkit.Implementation(
            name="reference",
            function="attnkit.reference:softmax",
            summary="float64, all logits at once",
            promises=_EVERYTHING.model_copy(update={"dropout": False}),
            cost=_reference_cost,
        ),
        attnkit.Implementation(
            name="eager",
            function="attnkit_plugins.multi_head.eager:attend",
            summary="plain torch, all logits at once, in at least float32",
            promises=_EVERYTHING,
            cost=_eager_cost,
        ),
        attnkit.Implementation(
            name="sdpa",
            function="attnkit_plugins.multi_head.sdpa:attend",
            summary="torch's scaled_dot_product_attention, masks as one tensor",
            promises=_EVERYTHING.model_copy(update={"softcap": False, "sinks": False}),
            cost=_sdpa_cost,
        ),
    ),
)


@attnkit.hookimpl
def attnkit_variants() -> tuple[attnkit.Variant, ...]:
    """Offer multi-head attention."""
    return (VARIANT,)
