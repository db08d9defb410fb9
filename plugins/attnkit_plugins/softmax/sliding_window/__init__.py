"""Sliding-window attention: each token looks at its w nearest keys, itself included.

    out_i = softmax_j(scale * q_i . k_j) v_j over i - w < j <= i, and without causal over
    |i - j| < w, positions being those of the keys

The window comes with the mask of a call, as ``attnkit.sliding_window(w)``, or from the layer's
``window_size``. It joins every other mask.

Source: Beltagy et al. 2020, https://arxiv.org/abs/2004.05150, section 3.1; there w counts both
sides of a window that is centred on its token.
"""

from __future__ import annotations

from pydantic import Field

import attnkit
from attnkit.kernels import costs
from attnkit.kernels.implementations import SOFTMAX, reference_softmax
from attnkit.layers import SoftmaxConfig
from attnkit.problem import SoftmaxProblem
from attnkit.promises import SpeedClaim

# Costs: seconds of one thread of an AMD Zen 5 with torch 2.13, fitted by hand to L 16 to 2048,
# w = 64, widths 16 to 128, within 40 %; one query is overestimated by up to 1.8.


class SlidingWindowConfig(SoftmaxConfig):
    """Configuration of the sliding-window layer."""

    # frozen, so narrowing the type is safe
    window_size: int = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        gt=0, description="w, keys a query sees, itself included"
    )


def _blocked_cost(problem: SoftmaxProblem) -> float:
    passes = 3.0 if problem.gradients else 1.0
    keys = float(problem.key_length)
    if problem.window is not None:
        # a block of 64 queries reaches this far
        keys = min(keys, problem.window * (1 if problem.causal else 2) + 64)
    each = 1.4e-9 + 18.5e-12 * costs.widths(problem)
    if problem.mask_parts - {"window"}:
        # the mask is evaluated, block by block
        each += 1.5e-9
    wide = 2.0 if problem.dtype == "float64" else 1.0
    blocks = max(1.0, problem.query_length / 64)
    work = wide * each * problem.query_length * costs.rows(problem) * keys
    return passes * (30e-6 + 70e-6 * blocks + work)


def _unfolded_cost(problem: SoftmaxProblem) -> float:
    # measured: 1.0 to 1.3 times as long with w = 64, 2.5 with 256; it holds more at once, too
    return 2.0 * _blocked_cost(problem)


_EXACT = SOFTMAX.model_copy(update={"needs": ("window",)})
_LINEAR = _EXACT.model_copy(update={"memory": "L", "time": "L*w"})
_FASTER = SpeedClaim(vs="sdpa", max_ratio=0.8, length=2048, window=64)

VARIANT = attnkit.Variant(
    name="sliding_window",
    family="softmax",
    summary="Sliding-window attention: each token looks at its w nearest keys, in O(L w) time.",
    source="Beltagy et al. 2020, https://arxiv.org/abs/2004.05150, section 3.1",
    relation="exact",
    # a state holds w - 1 tokens: enough to go on, not to go back
    promises=_LINEAR.model_copy(update={"state": True, "reorder": True}),
    config=SlidingWindowConfig,
    layer="attnkit.layers.softmax:SoftmaxLayer",
    layer_definition="attnkit.layers.definition:softmax",
    implementations=(
        reference_softmax(_EXACT, costs.reference),
        attnkit.Implementation(
            name="blocked",
            function="attnkit_plugins.softmax.sliding_window.blocks:attend",
            summary="blocks of queries against the keys in their reach, one after the other",
            # a loop of as many turns as there are blocks: another graph for every length
            promises=_LINEAR.model_copy(
                update={"compile": False, "transforms": (), "speed": (_FASTER,)}
            ),
            cost=_blocked_cost,
        ),
        attnkit.Implementation(
            name="unfolded",
            function="attnkit_plugins.softmax.sliding_window.unfold:attend",
            summary="all blocks at once; a graph of torch.compile serves many lengths",
            promises=_LINEAR,
            cost=_unfolded_cost,
        ),
    ),
)

attnkit_variants = attnkit.hookimpl(lambda: (VARIANT,))
