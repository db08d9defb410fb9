"""Deliberately wrong mixers, and a right one: layers whose variant alone has a definition.

What the checks know of a mixer is what it promises; so most are caught without that definition.
`MUTANTS` says which check must catch it, on which subject.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from mutants_recurrence import PROMISES as RECURRENCE
from torch import Tensor, nn

import attnkit
from attnkit.errors import MaskError, StateError, UnsupportedError
from attnkit.interface import LayerConfig, Variant
from attnkit.layers.definition import unpadded, visible
from attnkit.masks.constructors import Documents, Mask, Padding, Sizes
from attnkit.operations.arguments import check_mask, check_state, check_tokens

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Memory:
    """The decayed sum so far, (B, D)."""

    held: Tensor
    tokens: int = 0

    @property
    def batch_size(self) -> int:
        return len(self.held)

    def nbytes(self) -> int:
        return self.held.nbytes

    def reorder(self, index: Tensor) -> Self:
        return type(self)(self.held[index], self.tokens)

    def truncate(self, tokens: int) -> Self:
        if tokens == self.tokens:
            return self
        raise StateError("the sum so far does not tell its terms")


class Smoothing(nn.Module):
    """A gated moving average: y_t = W ((1 + tanh(V x_t)) h_t), h_t = a h_{t-1} + x_t."""

    mistake = ""

    def __init__(
        self, config: LayerConfig, *, variant: Variant, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self.config = config
        width = config.embed_dim
        self.gate = nn.Linear(width, width, bias=False, device=device, dtype=dtype)
        self.out = nn.Linear(width, width, bias=False, device=device, dtype=dtype)
        start = torch.linspace(-1, 3, width, device=device, dtype=dtype)
        self.slowness = nn.Parameter(start)
        if self.mistake == "unsaved_weight":
            self.tilt = torch.rand(width, dtype=dtype)

    def init_state(self, batch_size: int) -> Memory:
        weight = self.out.weight
        wide = torch.promote_types(weight.dtype, torch.float32)
        held = torch.zeros(batch_size, weight.shape[0], dtype=wide, device=weight.device)
        return Memory(held)

    def forward(
        self, x: Tensor, *, mask: Mask = attnkit.full(), state: Memory | None = None
    ) -> Any:
        check_tokens("x", x, self.config.embed_dim, self.out)
        check_mask(mask)
        if state is not None:
            check_state(state, Memory, len(x))
        seen = 0 if state is None else state.tokens
        keep, starts = self._layout(mask, x, seen)
        if self.mistake == "input_scaled_in_place":
            x.detach().mul_(1.0001)
        if keep is not None and self.mistake != "padding_added":
            x = torch.where(keep[..., None], x, 0.0)
        gated = torch.promote_types(x.dtype, torch.float32)
        held = self.init_state(len(x)).held if state is None else state.held
        if self.mistake == "state_ignored":
            held = torch.zeros_like(held)
        rows, held = self._scan(x.to(gated), held, keep, starts)
        out = self._wrong_rows(rows, x.to(gated)).to(x.dtype)
        gate = self.gate(x)
        gate = 2 * gate.sigmoid() - 1 if self.mistake == "gate_of_sigmoid" else gate.tanh()
        y = self.out(out * (1 + gate))
        y = self._wrong_output(y, x)
        return y if state is None else (y, Memory(held, seen + x.shape[1]))

    def _layout(self, mask: Mask, x: Tensor, seen: int) -> tuple[Tensor | None, Tensor | None]:
        keep = starts = None
        sizes = Sizes(len(x), 1, x.shape[1], seen + x.shape[1])
        for part in mask.conjuncts():
            part.check(sizes)
            if isinstance(part, Padding):
                real = part.keep(sizes)[:, seen:]
                keep = real if keep is None else keep & real
            elif isinstance(part, Documents):
                new = part.ids[:, 1:] != part.ids[:, :-1]
                starts = torch.cat((torch.zeros_like(new[:, :1]), new), 1)[:, seen:]
            elif self.mistake != "masks_in_silence" and part.parts:
                raise UnsupportedError(f"a moving average cannot apply the mask {part!r}")
        if keep is not None and keep.shape != x.shape[:2]:
            raise MaskError("padding does not fit")
        return keep, None if self.mistake == "documents_run_on" else starts

    def _scan(
        self, x: Tensor, held: Tensor, keep: Tensor | None, starts: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        decay, rows = self.slowness.to(x.dtype).sigmoid(), []
        if self.mistake == "decay_of_exponential":
            decay = self.slowness.to(x.dtype).clamp(max=0).exp()
        if self.mistake == "slower_in_training" and torch.is_grad_enabled():
            decay = decay * 0.99
        for t in range(x.shape[1]):
            if starts is not None:
                held = torch.where(starts[:, t, None], 0.0, held)
            following = decay * held + x[:, t]
            held = following if keep is None else torch.where(keep[:, t, None], following, held)
            rows.append(held)
        return (torch.stack(rows, 1) if rows else x), held.clone()

    def _wrong_rows(self, rows: Tensor, x: Tensor) -> Tensor:
        match self.mistake:
            case "normalised_by_the_future":
                return rows / (1 + 1e-3 * rows.abs().mean(1, keepdim=True))
            case "next_token_leaks_in_blocks":
                later = rows.roll(-1, 1) if rows.shape[1] > 130 else rows
                at = torch.arange(rows.shape[1]) % 8 == 5
                return torch.where(at[:, None], 0.999 * rows + 0.001 * later, rows)
            case "batch_normalised":
                return rows / (1 + rows.abs().mean((0, 2), keepdim=True))
            case "cooler_when_long":
                return rows * (1 + 1e-3 * (rows.shape[1] > 60))
            case "gradient_of_the_future":
                leak = 1e-3 * x.mean(1, keepdim=True)
                return rows + (leak - leak.detach())
            case "gradient_across_documents":
                leak = 1e-3 * x.cumsum(1)
                return rows + (leak - leak.detach())
            case "wrong_gradient":
                return rows + 0.01 * (rows - rows.detach())
            case "random":
                return rows * (1 + 1e-4 * torch.rand(()))
        return rows

    def _wrong_output(self, y: Tensor, x: Tensor) -> Tensor:
        match self.mistake:
            case "output_not_cast":
                return y.float()
            case "unsaved_weight":
                return y * self.tilt.to(y.dtype)
            case "square_memory":
                return y + 0 * (x @ x.mT).sum()
            case "overflows":
                return y + 0 * x.square().square().exp()
            case "strides_forgotten":
                return y + 1e-2 * x.as_strided(x.shape, torch.empty(x.shape).stride())
        return y


def smoothed(weights: Any, x: Tensor, *, config: LayerConfig, mask: Mask) -> Tensor:
    """Define `Smoothing`: h_t = sum_s a ** (real tokens from s to t) x_s."""
    number = unpadded(mask, x).cumsum(1)
    back = (number[:, :, None] - number[:, None]).clamp(min=0)[..., None]  # (B, L, L, 1)
    share = weights["slowness"].sigmoid() ** back * visible(mask, x)[..., None]  # (B, L, L, D)
    held = torch.einsum("blsd,bsd->bld", share, x)
    return (held * (1 + torch.tanh(x @ weights["gate.weight"].mT))) @ weights["out.weight"].mT


# of those of a recurrence, what is not about its operation
PROMISES = RECURRENCE.model_copy(
    update={
        **dict.fromkeys(("gqa", "value_width", "scale", "beta"), False),
        "decay": (),
        "memory": "L",
        "time": "L",
    }
)


def _mixer(name: str, **update: Any) -> Variant:
    layer: Callable[..., Any] = type("Smoothing", (Smoothing,), {"mistake": name})
    return Variant(
        name=f"mutant_mixer_{name}",
        family="mixer",
        summary="",
        source="",
        relation="different",
        promises=PROMISES.model_copy(update=update),
        config=LayerConfig,
        # by its own name where it is right, so that it can be pickled
        layer=Smoothing if name == "none" else layer,
        layer_definition=smoothed,
    )


RIGHT = _mixer("none")

KILLS = {
    "output_not_cast": "S1.output",
    "input_scaled_in_place": "S2.inputs_unchanged",
    "random": "S3.determinism",
    "strides_forgotten": "S5.strides",
    "masks_in_silence": "S10.masks",
    "next_token_leaks_in_blocks": "M1.suffix_perturbation",
    "gradient_of_the_future": "M2.gradient_causality",
    "always_causal": "S10.bidirectional",
    "gradient_across_documents": "M13.hidden_tokens",
    "padding_added": "M9.padding_content",
    "documents_run_on": "M11.packed",
    "batch_normalised": "A1.batch_independence",
    "overflows": "A9.scaled_input",
    "normalised_by_the_future": "T1.prefix",
    "cooler_when_long": "T1.prefix",
    "state_ignored": "T2.steps",
    "wrong_gradient": "N4.parameters",
    "slower_in_training": "N4.parameters",
    "gate_of_sigmoid": "N1.layer",
    "decay_of_exponential": "N1.layer",
    "unsaved_weight": "I4.state_dict",
    "square_memory": "I6.memory",
}

DTYPES = {
    "output_not_cast": "bfloat16",
    "wrong_gradient": "float64",
    "slower_in_training": "float64",
}

UPDATES = {"always_causal": {"bidirectional": True}}

MUTANTS = tuple(
    (_mixer(name, **UPDATES.get(name, {})), kills, "layer", DTYPES.get(name, "float32"))
    for name, kills in KILLS.items()
)
