"""How far a layer's output moves when its mathematics is changed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Drift:
    """Root mean square of the change over that of the layer's own output, over several calls."""

    changed: float = 0.0
    size: float = 0.0

    def add(self, own: Tensor, after: Tensor, real: Tensor) -> None:
        """Count one call.

        Args:
            own: The layer's own output.
            after: What stands in its place.
            real: Bool, broadcastable to both: which rows count.
        """
        before = own.double().masked_fill(~real, 0.0)
        moved = after.double().masked_fill(~real, 0.0) - before
        self.changed += float(moved.square().sum())
        self.size += float(before.square().sum())

    def share(self) -> float:
        """Return the drift, 0 for no change; inf where the layer's own output is 0."""
        if not self.changed:
            return 0.0
        return math.sqrt(self.changed / self.size) if self.size else math.inf
