"""Layers of a user's own, in float64: one calls torch's function, one is declared."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch_layers import DOUBLE, normal

import attnkit
from attnkit.swaps.api import Needs


class Projected(nn.Module):
    """Projections around an attention that the subclasses have."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv = nn.Linear(32, 96, dtype=DOUBLE)
        self.out = nn.Linear(32, 32, dtype=DOUBLE)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)

    def heads(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        return q, k, v


class Calling(Projected):
    """Calls torch's function."""

    def forward(self, x: torch.Tensor, **options: Any) -> torch.Tensor:
        mixed = functional.scaled_dot_product_attention(*self.heads(x), **options)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Spelt(Projected):
    """Does the arithmetic itself, in a method; causal."""

    def forward(self, x: torch.Tensor, visible: Any = None, **rest: Any) -> torch.Tensor:
        q, k, v = self.heads(x)
        return self.out(self.attend(q, k, v, visible, **rest).transpose(1, 2).flatten(2))

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        visible: torch.Tensor | None = None,
        extra: torch.Tensor | None = None,
        temperature: float = 1.0,
    ) -> torch.Tensor:
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
        if visible is not None:
            seen = seen & visible
        logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[3]) * temperature
        logits = logits if extra is None else logits + extra
        return logits.masked_fill(~seen, -math.inf).softmax(dim=-1) @ v


CAUSAL = Needs(heads=4, kv_heads=4, head_dim=8, causal=True)


def spelt(**options: Any) -> Spelt:
    """Return a layer of a fresh class, declared."""
    names = {"method": "attend", "query": "q", "key": "k", "value": "v", "mask": "visible"}
    layer = type("Mine", (Spelt,), {})
    made: Spelt = attnkit.declare(layer, **{**names, "needs": CAUSAL, **options})()
    return made


SAMPLE = {"x": normal(2, 9, 32)}
