"""Multi-head attention: softmax attention in H heads, whatever the mask.

    head_h = softmax(scale * q_h K^T + masks) V,    y = [head_1 ... head_H] W_out

With fewer key/value heads than query heads it is grouped-query attention (Ainslie et al. 2023,
https://arxiv.org/abs/2305.13245), with one of them multi-query attention (Shazeer 2019,
https://arxiv.org/abs/1911.02150). Attending to a context instead of to itself, it is
cross-attention. This is the variant to start from: it takes every argument.

Source: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.2.2.
"""

from __future__ import annotations

import attnkit
from attnkit.kernels import costs
from attnkit.kernels.implementations import SOFTMAX, reference_softmax
from attnkit.layers import SoftmaxConfig
from attnkit.problem import SoftmaxProblem

# Costs: seconds of one thread of an AMD Zen 5 with torch 2.13, fitted by hand to L 1 to 2048 in
# float32, bfloat16 and float16; most within 30 %.


def _reference_cost(problem: SoftmaxProblem) -> float:
    return 100e-6 + 40e-9 * costs.logits(problem)


def _eager_cost(problem: SoftmaxProblem) -> float:
    each = 1.5e-9 + 13e-12 * costs.widths(problem)
    extra = 0.0
    if problem.mask_parts or (problem.causal and problem.query_length > 1):
        each += 2.2e-9
        extra = 20e-6
    if costs.logits(problem) > 1 << 22:
        # the logits no longer fit a cache
        each *= 2
    copies = 1 if problem.dtype in ("float32", "float64") else 2
    work = each * costs.logits(problem) + copies * costs.reading(problem, problem.kv_heads)
    return extra + costs.passes(problem) * (30e-6 + work)


def _sdpa_cost(problem: SoftmaxProblem) -> float:
    rows, logits = costs.rows(problem), costs.logits(problem)
    if problem.query_length == 1 and problem.dtype in ("bfloat16", "float16"):
        # torch multiplies a half matrix by one vector slowly
        each = 90e-9 if problem.dtype == "bfloat16" else 140e-9
        return costs.passes(problem) * (20e-6 + each * rows * problem.key_length)
    square = problem.causal and not problem.mask_parts
    square = square and problem.query_length == problem.key_length
    if square and problem.query_length > 512:
        # torch skips hidden keys by blocks of 512
        logits *= 0.5 + 256 / problem.query_length
    slow = {"float16": 7.5 if problem.gradients else 2.0, "float64": 2.2}.get(problem.dtype, 1.0)
    each = slow * (0.3e-9 + 19e-12 * costs.widths(problem))
    if problem.mask_parts or problem.bias:
        each += 0.5e-9
    extra = 50e-6 if problem.bias else 10e-6 if problem.mask_parts else 0.0
    if problem.gradients and problem.dtype == "bfloat16":
        extra += rows * (40e-6 + 1e-6 * min(problem.query_length, 128))
    return extra + costs.passes(problem) * (
        12e-6 + each * logits + costs.reading(problem, problem.heads)
    )


_EVERYTHING = SOFTMAX.model_copy(update={"dropout": True})

VARIANT = attnkit.Variant(
    name="multi_head",
    family="softmax",
    summary="Multi-head attention: MHA, GQA, MQA and cross-attention, with every option.",
    source="Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.2.2",
    relation="exact",
    promises=_EVERYTHING.model_copy(update={"state": True, "reorder": True, "truncate": True}),
    config=SoftmaxConfig,
    layer="attnkit.layers.softmax:SoftmaxLayer",
    layer_definition="attnkit.layers.definition:softmax",
    implementations=(
        reference_softmax(SOFTMAX, _reference_cost),
        attnkit.Implementation(
            name="eager",
            function="attnkit_plugins.softmax.multi_head.eager:attend",
            summary="plain torch, all logits at once, in at least float32",
            promises=_EVERYTHING,
            cost=_eager_cost,
        ),
        attnkit.Implementation(
            name="sdpa",
            function="attnkit_plugins.softmax.multi_head.sdpa:attend",
            summary="torch's scaled_dot_product_attention, masks as one tensor",
            # torch has no forward derivative of its fused kernels
            promises=_EVERYTHING.model_copy(
                update={"softcap": False, "sinks": False, "transforms": ("grad", "vmap")}
            ),
            cost=_sdpa_cost,
        ),
    ),
)

attnkit_variants = attnkit.hookimpl(lambda: (VARIANT,))
