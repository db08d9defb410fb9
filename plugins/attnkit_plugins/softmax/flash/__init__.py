"""FlashAttention: exact softmax attention whose logits never exist all at once.

    out = softmax(scale * Q K^T + masks) V, tile by tile, in O(L + S) extra memory

The mathematics is that of multi-head attention; what differs is the way. `tiled` is the paper's
algorithm in plain torch and takes everything but dropout; `sdpa` is torch's fused kernel, for
the calls that it computes exactly and without an L x S tensor; `onednn` is that kernel in
float32 with its products made by oneDNN, where those stay float32.

Source: Dao et al. 2022, https://arxiv.org/abs/2205.14135, algorithms 1 (forward) and 4 (backward).
"""

from __future__ import annotations

import attnkit
from attnkit.kernels import costs
from attnkit.kernels.implementations import SOFTMAX, reference_softmax
from attnkit.layers import SoftmaxConfig
from attnkit.problem import SoftmaxProblem
from attnkit.promises import SpeedClaim

# Costs: seconds of one thread of an AMD Zen 5 with torch 2.13, fitted by hand to L 1 to 2048,
# widths 16 to 128; most within 30 %. What oneDNN gains depends on the processor: it is measured.


def _reference_cost(problem: SoftmaxProblem) -> float:
    return costs.reference(problem) + (30e-6 if problem.mask_parts else 0.0)


def _sdpa_cost(problem: SoftmaxProblem) -> float:
    rows = problem.query_length
    if not problem.causal or rows == 1:
        # heads that share keys stand in line as further queries
        rows *= problem.heads // problem.kv_heads
    if rows == 1 and problem.dtype in ("bfloat16", "float16"):
        # torch multiplies a half matrix by one vector slowly
        slow = 90e-9 if problem.dtype == "bfloat16" else 140e-9
        return costs.passes(problem) * (20e-6 + slow * costs.rows(problem) * problem.key_length)
    # torch skips hidden keys by blocks of 512
    keys = _visible(problem, 512)
    each = 0.3e-9 + 19e-12 * costs.widths(problem)
    slow = {"float16": 7.5 if problem.gradients else 2.0, "float64": 2.2}.get(problem.dtype, 1.0)
    work = slow * each * problem.query_length * costs.rows(problem) * keys
    extra = 20e-6 if problem.mask_parts else 0.0
    if problem.gradients and problem.dtype == "bfloat16":
        extra += costs.rows(problem) * (40e-6 + 1e-6 * min(problem.query_length, 128))
    return extra + costs.passes(problem) * (13e-6 + work + costs.reading(problem, problem.kv_heads))


def _onednn_cost(problem: SoftmaxProblem) -> float:
    from attnkit.kernels.onednn import gain

    keys = _visible(problem, 512)
    # torch's tiles: this many products, each of which oneDNN takes about 10 us to begin
    rows = 256 if problem.query_length >= 768 else 64 if problem.query_length >= 192 else 32
    tiles = max(1.0, problem.query_length / rows) * max(1.0, keys / 512)
    each = 0.3e-9 + 19e-12 * costs.widths(problem) / gain()
    work = each * problem.query_length * costs.rows(problem) * keys
    copies = 1 if problem.dtype == "float32" else 3
    extra = 40e-6 if problem.mask_parts else 20e-6
    return extra + costs.passes(problem) * (
        20e-6
        + 20e-6 * costs.rows(problem) * tiles
        + work
        + copies * costs.reading(problem, problem.kv_heads)
    )


def _onednn_refuses(problem: SoftmaxProblem) -> str | None:
    from attnkit.kernels.onednn import stays_exact

    if not stays_exact():
        return "device: oneDNN does not keep float32 products in float32 on this machine"
    return _sdpa_refuses(problem)


def _tiled_cost(problem: SoftmaxProblem) -> float:
    keys = _visible(problem, 128)
    if problem.window is not None:
        keys = min(keys, problem.window * (1 if problem.causal else 2) + 128)
    rows = min(problem.query_length, 128)
    columns = max(128, (1 << 18) // (costs.rows(problem) * rows))
    tiles = (problem.query_length / rows) * max(1.0, keys / columns)
    each = 1.2e-9 + 18.5e-12 * costs.widths(problem)
    if problem.mask_parts - {"window"}:
        # the mask is evaluated, tile by tile
        each += 1.5e-9
    wide = 2.0 if problem.dtype == "float64" else 1.0
    work = wide * each * problem.query_length * costs.rows(problem) * keys
    copies = 1 if problem.dtype in ("float32", "float64") else 2
    return costs.passes(problem) * (
        30e-6 + 45e-6 * tiles + work + copies * costs.reading(problem, problem.kv_heads)
    )


def _sdpa_refuses(problem: SoftmaxProblem) -> str | None:
    if not problem.causal or problem.query_length == 1:
        return None
    if problem.query_length != problem.key_length:
        return "causal: torch aligns it to the upper left, so L must be 1 or S"
    if problem.mask_parts:
        return "mask: torch joins causal and padding only in an L x S tensor"
    return None


def _visible(problem: SoftmaxProblem, block: int) -> float:
    """Return the keys that are computed for each query, causal masks skipped by blocks."""
    skipped = problem.query_length - block
    if not problem.causal or skipped <= 0:
        return problem.key_length
    return max(1.0, problem.key_length - skipped / 2)


_FUSED = SOFTMAX.model_copy(
    update={
        "masks": ("padding",),
        "value_width": False,
        "bias": False,
        "softcap": False,
        "sinks": False,
        "devices": ("cpu",),
        # torch has no forward derivative of its fused kernels
        "transforms": ("grad", "vmap"),
        "memory": "L",
    }
)

VARIANT = attnkit.Variant(
    name="flash",
    family="softmax",
    summary="FlashAttention: exact softmax attention in memory that grows with L, not L x S.",
    source="Dao et al. 2022, https://arxiv.org/abs/2205.14135, algorithms 1 and 4",
    relation="exact",
    promises=SOFTMAX.model_copy(
        update={"memory": "L", "state": True, "reorder": True, "truncate": True}
    ),
    config=SoftmaxConfig,
    layer="attnkit.layers.softmax:SoftmaxLayer",
    layer_definition="attnkit.layers.definition:softmax",
    implementations=(
        reference_softmax(SOFTMAX, _reference_cost),
        attnkit.Implementation(
            name="sdpa",
            function="attnkit_plugins.softmax.flash.sdpa:attend",
            summary="torch's fused kernel, where it is exact and makes no L x S tensor",
            promises=_FUSED.model_copy(
                update={"speed": (SpeedClaim(vs="sdpa", max_ratio=1.5, length=512, heads=2),)}
            ),
            cost=_sdpa_cost,
            refuses=_sdpa_refuses,
        ),
        attnkit.Implementation(
            name="onednn",
            function="attnkit_plugins.softmax.flash.onednn:attend",
            summary="torch's fused kernel in float32, its products made by oneDNN",
            promises=_FUSED.model_copy(
                update={
                    "dtypes": ("float32", "bfloat16", "float16"),
                    "compile": False,
                    "transforms": ("vmap",),
                }
            ),
            cost=_onednn_cost,
            refuses=_onednn_refuses,
        ),
        attnkit.Implementation(
            name="tiled",
            function="attnkit_plugins.softmax.flash.tiles:attend",
            summary="the paper's tiles in plain torch; any mask, bias, softcap, sinks",
            promises=SOFTMAX.model_copy(update={"memory": "L", "transforms": ()}),
            cost=_tiled_cost,
        ),
    ),
)

attnkit_variants = attnkit.hookimpl(lambda: (VARIANT,))
