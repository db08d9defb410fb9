"""A layer whose import seeds torch's random numbers, on which the suite is tried."""

from __future__ import annotations

import torch

from attnkit.layers.softmax import SoftmaxLayer

torch.manual_seed(1234)


class CarelessLayer(SoftmaxLayer):
    """Right, but for what its module does when it is imported."""
