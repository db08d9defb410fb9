"""Block-sparse attention: a map says which blocks of keys each block of queries looks at.

    out = softmax(scale * Q K^T, -inf where map[i // b, j // b] is false) V

i and j are positions of keys, b is the block size. The map comes with the mask of a call, as
``attnkit.blocks(block_map, b)``, and may differ by sample and head; or a layer makes one of its
own: local blocks around each token and global blocks that all tokens see. It joins every other
mask.

Source: Dao et al. 2022, https://arxiv.org/abs/2205.14135, section 3.3. The layer's pattern: Zaheer
et al. 2020, https://arxiv.org/abs/2007.14062, section 2, without its random blocks and with
global keys only.
"""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

import attnkit
from attnkit.kernels import costs
from attnkit.kernels.implementations import SOFTMAX, reference_softmax
from attnkit.layers import SoftmaxConfig
from attnkit.problem import SoftmaxProblem

# Costs: seconds of one thread of an AMD Zen 5 with torch 2.13, fitted by hand to b = 32. A problem
# does not say how full the map is: a quarter is assumed, and the estimate errs as that does.
_SHARE = 0.25


class BlockSparseConfig(SoftmaxConfig):
    """Configuration of the block-sparse layer: its own pattern, or none."""

    block_size: int | None = Field(
        default=None, gt=0, description="b, positions per block of the pattern; None for no pattern"
    )
    local_blocks: int | None = Field(
        default=None,
        gt=0,
        description="blocks a token sees, its own and those before it (and as many after it "
        "unless is_causal); None for no pattern: each call's mask must bring a map",
    )
    global_blocks: int = Field(0, ge=0, description="leading blocks that all tokens see")

    @model_validator(mode="after")
    def _check_pattern(self) -> Self:
        if (self.block_size is None) != (self.local_blocks is None):
            raise ValueError(
                "block_size and local_blocks make a pattern together, "
                f"got {self.block_size} and {self.local_blocks}; give both or neither"
            )
        if self.global_blocks and self.local_blocks is None:
            raise ValueError(
                f"global_blocks={self.global_blocks} needs block_size and local_blocks; "
                "give all three, or put the map into the mask of each call"
            )
        if self.local_blocks is not None:
            alone = [name for name in ("window_size", "context_dim") if getattr(self, name)]
            if alone:
                raise ValueError(
                    f"local_blocks excludes {', '.join(alone)}: its blocks lie at the positions "
                    "of the layer's own tokens, all of them kept"
                )
        return self


def _gathered_cost(problem: SoftmaxProblem) -> float:
    # 3 us for every block of queries, 64 of them being assumed to be one
    planning = 200e-6 + 3e-6 * problem.query_length / 64
    each = 1.5e-9 + 22e-12 * costs.widths(problem)
    if problem.causal or problem.mask_parts - {"blocks"}:
        # the rest of the mask is evaluated inside the visible blocks
        each += 1.2e-9
    wide = 2.0 if problem.dtype == "float64" else 1.0
    pairs = _SHARE * costs.logits(problem)
    return costs.passes(problem) * (planning + wide * each * pairs)


_EXACT = SOFTMAX.model_copy(
    update={
        "masks": ("window", "padding", "documents", "prefix", "dense", "blocks"),
        "needs": ("blocks",),
        "bias": False,
    }
)
_SPARSE = _EXACT.model_copy(update={"memory": "L", "time": "L*w"})

VARIANT = attnkit.Variant(
    name="block_sparse",
    family="softmax",
    summary="Block-sparse attention: a map of blocks, in time that grows with the visible ones.",
    source="Dao et al. 2022, https://arxiv.org/abs/2205.14135, section 3.3",
    relation="exact",
    promises=_SPARSE.model_copy(update={"state": True, "reorder": True, "truncate": True}),
    config=BlockSparseConfig,
    layer="attnkit_plugins.softmax.block_sparse.layer:BlockSparseLayer",
    layer_definition="attnkit_plugins.softmax.block_sparse.definition:block_sparse",
    implementations=(
        reference_softmax(_EXACT, costs.reference),
        attnkit.Implementation(
            name="gathered",
            function="attnkit_plugins.softmax.block_sparse.gather:attend",
            summary="the visible blocks side by side, rows of equal work in one batch",
            # reading the map decides shapes
            promises=_SPARSE.model_copy(update={"compile": False, "transforms": ()}),
            cost=_gathered_cost,
        ),
    ),
)

attnkit_variants = attnkit.hookimpl(lambda: (VARIANT,))
