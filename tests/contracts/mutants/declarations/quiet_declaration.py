"""A declaration whose code is careless, on which the suite is tried."""

from __future__ import annotations

from attnkit.layers.softmax_config import SoftmaxConfig


class QuietConfig(SoftmaxConfig):
    """Belongs to a declaration that is cheap."""
