"""Linear attention in place of a layer's attention function: no parameters of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from attnkit.hosts.parts import Inputs
from attnkit_plugins.recurrence.linear import LinearOptions, LinearSiteOptions

if TYPE_CHECKING:
    import torch

    from attnkit.sites import Site


class LinearSite(nn.Module):
    """Takes query, key and value as they come; the layer's scale has no place here."""

    def __init__(
        self, site: Site, options: LinearSiteOptions, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.options = LinearOptions(
            feature_map=options.feature_map, eps=options.eps, chunk_size=options.chunk_size
        )

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, x: Tensor, *, scale: float
    ) -> Inputs:
        """See `attnkit.hosts.parts.Module`."""
        return Inputs(query, key, value, None, 1.0, self.options)
