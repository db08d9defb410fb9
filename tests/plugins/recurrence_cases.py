"""The recurrences and their layers, to be asked the same questions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

import attnkit
from attnkit.interface import load
from attnkit_plugins.recurrence import gated_linear, linear, state_space

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from attnkit.layers.recurrent import RecurrentLayer

NAMES = ("reference", "recurrent", "chunked")


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def assert_close(got: Tensor, expected: Tensor, unit: torch.dtype) -> None:
    # a sum of n products errs by up to n units of its terms' sizes, in practice by about sqrt(n);
    # n is below 1000 here, and mistakes are 1e4 units and more
    limit = 64 * torch.finfo(unit).eps * max(1.0, expected.double().abs().max().item())
    torch.testing.assert_close(got.double(), expected.double(), rtol=0, atol=limit)


@dataclass(frozen=True)
class Form:
    """A recurrence with one form of decay."""

    variant: attnkit.Variant
    decay: str

    def __str__(self) -> str:
        return f"{self.variant.name}-{self.decay}"

    def inputs(
        self,
        length: int,
        groups: int = 2,
        *,
        strength: float = 1.0,
        dtype: torch.dtype = torch.float64,
    ) -> tuple[Tensor, ...]:
        """Query, key, value, log_decay if there is one, and a state."""
        wide = torch.promote_types(dtype, torch.float32)
        tokens = (
            draw(2, groups, length, 6, seed=1).to(dtype),
            draw(2, groups, length, 6, seed=2).to(dtype),
            draw(2, 4, length, 5, seed=3).to(dtype),
        )
        if self.decay == "none":
            # the last column, a sum of features, is positive
            return (*tokens, draw(2, 4, 6, 6, seed=4).abs().to(wide))
        shape = (2, 4, length, 6) if self.decay == "channel" else (2, 4, length)
        log_decay = -strength * draw(*shape, seed=4).abs().to(dtype)
        return (*tokens, log_decay, draw(2, 4, 6, 5, seed=5).to(wide))

    def run(
        self, given: Sequence[Tensor], name: str, chunk_size: int = 64, **arguments: Any
    ) -> tuple[Tensor, Tensor]:
        """Run what `inputs` returns."""
        query, key, value, *decay, state = given
        if decay:
            arguments["log_decay"] = decay[0]
        default = self.variant.options.model_validate({"chunk_size": chunk_size})
        arguments.setdefault("options", default)
        return attnkit.recurrence(
            query,
            key,
            value,
            variant=self.variant,
            initial_state=state,
            implementation=name,
            **arguments,
        )

    def gradients(
        self, given: Sequence[Tensor], name: str, chunk_size: int = 64, **arguments: Any
    ) -> list[Tensor]:
        """Return the gradients of a weighted sum of outputs and state."""
        if self.decay != "none":
            arguments["scale"] = 0.5
        leaves = tuple(tensor.clone().requires_grad_() for tensor in given)
        out, state = self.run(leaves, name, chunk_size, **arguments)
        loss = (out * draw(*out.shape, seed=8)).sum() + (state * draw(*state.shape, seed=9)).sum()
        return list(torch.autograd.grad(loss, leaves))


LINEAR = Form(linear.VARIANT, "none")
GATED = (Form(gated_linear.VARIANT, "head"), Form(gated_linear.VARIANT, "channel"))
STATE_SPACE = Form(state_space.VARIANT, "head")
WITH_DECAY = (*GATED, STATE_SPACE)
FORMS = (LINEAR, *WITH_DECAY)


@dataclass(frozen=True)
class Kind:
    """A layer of width 12 with 4 heads, and some of its options."""

    variant: attnkit.Variant
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join((self.variant.name, *map(str, self.options.values())))

    def of(self, **options: Any) -> Kind:
        """Return it with further options."""
        return Kind(self.variant, {**self.options, **options})

    def layer(self, dtype: torch.dtype = torch.float64, **options: Any) -> RecurrentLayer:
        """Build it from the same random numbers every time."""
        torch.manual_seed(0)
        given = {"embed_dim": 12, "num_heads": 4, "chunk_size": 4, **self.options, **options}
        config = self.variant.config.model_validate(given)
        built: RecurrentLayer = load(self.variant.layer)(config, variant=self.variant, dtype=dtype)
        return built


LINEAR_LAYER = Kind(linear.VARIANT)
GATED_LAYERS = [
    Kind(gated_linear.VARIANT, {"gate_temperature": 2.0, "decay": decay})
    for decay in ("channel", "head", "fixed")
]
STATE_SPACE_LAYER = Kind(state_space.VARIANT, {"state_size": 5, "num_groups": 2})
LAYERS = [LINEAR_LAYER, *GATED_LAYERS, STATE_SPACE_LAYER]


def steps(
    built: RecurrentLayer,
    x: Tensor,
    cuts: list[int],
    mask: Callable[[int], attnkit.Mask] = lambda _: attnkit.full(),
) -> tuple[Tensor, Any]:
    """Run the layer over pieces of these lengths; ``mask`` gets the number of tokens so far."""
    state, ys, first = built.init_state(x.shape[0]), [], 0
    for count in cuts:
        first += count
        y, state = built(x[:, first - count : first], state=state, mask=mask(first))
        ys.append(y)
    return torch.cat(ys, 1), state
