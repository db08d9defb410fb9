"""The weights of all experts, stacked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ExpertWeights:
    """The SwiGLU experts' weights, in the dtype of the tokens.

    Attributes:
        gate_up: (E, 2F, D), W_gate above W_up.
        down: (E, D, F), W_down.
    """

    gate_up: Tensor
    down: Tensor
