"""A declaration that imports torch, on which the suite is tried."""

from __future__ import annotations

import torch

from attnkit.layers.softmax_config import SoftmaxConfig


class CarelessConfig(SoftmaxConfig):
    """Belongs to a declaration that is not cheap."""


WIDTH = torch.ones(1)
