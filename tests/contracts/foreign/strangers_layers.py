"""Layers of strangers, a right one and wrong ones: nothing in them knows of attnkit.

`KILLS` says which check must catch which mistake.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """Attention of four heads: (B, L, D) to (B, L, D).

    ``real`` (B, L) is False at padding; ``seen`` (B, 1, L, L) is True where a query may look.
    """

    mistake = ""

    def __init__(self, dim: int, heads: int = 4, drop: float = 0.0) -> None:
        super().__init__()
        self.heads, self.drop = heads, drop
        self.mix = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.kept: Tensor | None = None
        self.factors: dict[int, float] = {}
        if self.mistake == "unsaved_weight":
            self.tilt = torch.rand(dim)
        if self.mistake == "computed_when_made":
            self.register_buffer("angles", (torch.arange(dim) / 3).cos(), persistent=False)
        if self.mistake == "weight_unused":
            self.gate = nn.Linear(dim, dim)

    def forward(self, x: Tensor, real: Tensor | None = None, seen: Tensor | None = None) -> Tensor:
        length = x.shape[1]
        hidden = torch.zeros(1, 1, length, length, dtype=torch.bool)
        if real is not None and self.mistake != "padding_ignored":
            hidden = hidden | ~real[:, None, None]
        if seen is not None and self.mistake != "mask_ignored":
            hidden = hidden | (seen if self.mistake == "mask_inverted" else ~seen)
        if self.mistake == "always_causal":
            hidden = hidden | torch.ones(length, length, dtype=torch.bool).triu(1)
        return self.wrong(self.attend(self.before(x), hidden), x, seen)

    def attend(self, x: Tensor, hidden: Tensor) -> Tensor:
        batch, length, dim = x.shape
        mixed = self.mix(x).reshape(batch, length, 3, self.heads, dim // self.heads)
        query, key, value = mixed.permute(2, 0, 3, 1, 4)
        logits = query @ key.mT / math.sqrt(query.shape[-1])
        # a row that sees nothing gets zeros, and sends no NaN back
        logits = logits.masked_fill(hidden, torch.finfo(logits.dtype).min)
        weights = logits.softmax(-1).masked_fill(hidden, 0.0)
        if self.mistake == "hidden_weigh_a_little":
            weights = weights + 1e-6 * hidden
        if self.mistake == "overflows":
            weights = logits.exp() / logits.exp().sum(-1, keepdim=True)
        dropping = self.training or self.mistake == "drops_in_evaluation"
        weights = nn.functional.dropout(weights, self.drop, training=dropping)
        y: Tensor = self.out((weights @ value).transpose(1, 2).reshape(batch, length, dim))
        return y

    def before(self, x: Tensor) -> Tensor:
        match self.mistake:
            case "input_changed":
                x.detach().mul_(1.0001)
            case "memory_unwritten":
                room = torch.empty_like(x)
                room[:, :-1] = x[:, :-1]
                return torch.cat((room[:, :-1], x[:, -1:]), 1) + 0 * room
            case "strides_forgotten":
                return x.as_strided(x.shape, torch.empty(x.shape).stride())
            case "detached":
                return x.detach()
        return x

    def wrong(self, y: Tensor, x: Tensor, seen: Tensor | None) -> Tensor:
        match self.mistake:
            case "future_leaks":
                return y + 1e-3 * torch.cat((y[:, 1:], y[:, :1]), 1)
            case "future_leaks_in_blocks" if x.shape[1] > 130:
                at = torch.arange(x.shape[1]) % 8 == 5
                return torch.where(at[:, None], y + 1e-3 * y.roll(-1, 1), y)
            case "gradient_of_the_future":
                leak = 1e-3 * x.mean(1, keepdim=True)
                return y + (leak - leak.detach())
            case "gradient_of_the_hidden" if seen is not None:
                leak = 1e-3 * x.cumsum(1)
                return y + (leak - leak.detach())
            case "batches_tiled" if len(x) > 2:
                return torch.cat((y[:2], y[:2].repeat(len(y), 1, 1)[: len(y) - 2]))
            case "neighbours_normalised":
                return y / (1 + y.abs().mean((0, 2), keepdim=True))
            case "cooler_when_long":
                return y * (1 + 1e-3 * (x.shape[1] > 60))
            case "random":
                return y * (1 + 1e-4 * torch.rand(()))
            case "not_cast":
                return y.float()
            case "transposed":
                return y.transpose(0, 1) if x.shape[1] > 2 else y
            case "empty_refused" if not len(x):
                raise RuntimeError("no samples")
            case "wrong_gradient":
                return y + 0.01 * (y - y.detach())
            case "unsaved_weight":
                return y * self.tilt.to(y)
            case "computed_when_made":
                return y * self.angles
            case "graph_kept":
                self.kept = y
                return y
            case "first_length_kept":
                factor = self.factors.setdefault(0, 1 + 1e-3 * x.shape[1])
                return y * factor
        return y


class Pair(NamedTuple):
    """An output beside something else."""

    weights: None
    hidden: Tensor


class TokensFirst(nn.Module):
    """The same under other conventions: (L, B, D), named arguments, True hides, named output."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.inner = Attention(dim)

    def forward(
        self,
        *,
        query: Tensor,
        value: Tensor,
        padded: Tensor | None = None,
        added: Tensor | None = None,
        causal: bool = False,
        loud: bool = True,
    ) -> Pair:
        assert query is value
        assert not loud
        length = query.shape[0]
        seen = None if added is None else added.reshape(-1, 4, length, length)[:, :1] == 0
        if causal:
            assert seen is None
            seen = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
        real = None if padded is None else padded == 0
        return Pair(None, self.inner(query.transpose(0, 1), real, seen).transpose(0, 1))


class Averages(nn.Module):
    """Causal by itself: the mean of all tokens so far, gated."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        count = torch.arange(1, x.shape[1] + 1)[:, None]
        means = x.float().cumsum(1) if x.dtype != torch.float64 else x.cumsum(1)
        return self.gate(x).tanh() * (means / count).to(x.dtype), None


KILLS = {
    "not_cast": "S1.output",
    "transposed": "S1.output",
    "input_changed": "S2.inputs_unchanged",
    "random": "S3.determinism",
    "memory_unwritten": "S4.poisoned_allocations",
    "strides_forgotten": "S5.strides",
    "empty_refused": "S8.empty",
    "mask_ignored": "S10.masks",
    "always_causal": "S10.bidirectional",
    "future_leaks": "M1.suffix_perturbation",
    "future_leaks_in_blocks": "M1.suffix_perturbation",
    "gradient_of_the_future": "M2.gradient_causality",
    "hidden_weigh_a_little": "M9.padding_content",
    "padding_ignored": "M10.padded",
    "mask_inverted": "M13.hidden_tokens",
    "gradient_of_the_hidden": "M13.hidden_tokens",
    "batches_tiled": "A1.batch_independence",
    "neighbours_normalised": "A1.batch_independence",
    "overflows": "A9.scaled_input",
    "cooler_when_long": "T1.prefix",
    "wrong_gradient": "N4.parameters",
    "detached": "N4.subsets",
    "drops_in_evaluation": "N6.modes",
    "unsaved_weight": "I4.state_dict",
    "graph_kept": "I4.copies",
    "computed_when_made": "I4.moves",
    "first_length_kept": "S7.call_order",
    "weight_unused": "N4.parameters",
}
"""What each mistake must be caught by."""

for _name in KILLS:
    # by name, so that they can be pickled
    globals()[_name] = type(_name, (Attention,), {"mistake": _name, "__module__": __name__})
