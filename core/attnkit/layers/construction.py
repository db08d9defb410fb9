"""What a layer is made with, and where its parameters lie: `MadeLayer`, `New`."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

import torch
from torch import nn

from attnkit.errors import UnsupportedError
from attnkit.interface import LayerConfig, Variant

Config = TypeVar("Config", bound=LayerConfig)


class New(NamedTuple):
    """Makes what has weights, where and in which dtype the layer was asked for."""

    device: torch.device | str | None
    dtype: torch.dtype | None

    def linear(self, inputs: int, outputs: int, *, bias: bool) -> nn.Linear:
        """Return a projection, (inputs) to (outputs)."""
        return nn.Linear(inputs, outputs, bias=bias, device=self.device, dtype=self.dtype)

    def empty(self, *shape: int) -> nn.Parameter:
        """Return a parameter of numbers yet to be drawn."""
        return nn.Parameter(torch.empty(*shape, device=self.device, dtype=self.dtype))

    def filled(self, number: float, *shape: int) -> nn.Parameter:
        """Return a parameter of the same number everywhere."""
        return nn.Parameter(torch.full(shape, number, device=self.device, dtype=self.dtype))


class MadeLayer(nn.Module, Generic[Config]):
    """A layer made as `attnkit.interface.Variant.layer` is called; it says in `make` of what.

        class MeanLayer(MadeLayer[attnkit.LayerConfig]):
            def make(self, new: New) -> None:
                width = self.config.embed_dim
                self.out_proj = new.linear(width, width, bias=False)

    Attributes:
        config: Its ``implementation`` is the one that runs.
        variant: What it is a layer of.
    """

    def __init__(
        self,
        config: Config,
        *,
        variant: Variant,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.variant = variant
        self.make(New(device, dtype))

    def check_runs_stepwise(self, *, is_causal: bool) -> None:
        """Raise `UnsupportedError` where the layer looks at later tokens."""
        if not is_causal:
            raise UnsupportedError(
                f"variant {self.variant.name!r} cannot carry a state with is_causal=False: every "
                "token sees later ones; set is_causal=True"
            )

    def make(self, new: New) -> None:
        """Set the parameters and what else the layer keeps; the configuration is there."""
        raise NotImplementedError  # every layer's own
