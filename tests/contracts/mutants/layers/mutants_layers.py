"""Deliberately wrong layers around right operations.

`MUTANTS` says which check must catch it, on which subject, and in which dtype where not float32.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from mutants_softmax import attend, variant_of
from pydantic import ConfigDict
from torch import Tensor, nn

from attnkit.layers.softmax import SoftmaxLayer
from attnkit.layers.softmax_config import SoftmaxConfig
from attnkit.state import KVCache
from attnkit_plugins.softmax.self_attention import VARIANT as SELF_ATTENTION
from attnkit_plugins.softmax.self_attention.layer import SelfAttentionLayer

if TYPE_CHECKING:
    from attnkit.interface import Variant


def underscored(made: type) -> str:
    """Return _some_name of SomeName."""
    return "".join("_" + c.lower() if c.isupper() else c for c in made.__name__)


class Further(SoftmaxLayer):
    """A right layer; what is wrong comes on top of what it gives."""

    def forward(self, x: Tensor, **given: Any) -> Any:
        found = super().forward(x, **given)
        if isinstance(found, tuple):
            return self.spoil(found[0], x, given), self.spoil_state(found[1], given["state"])
        return self.spoil(found, x, given)

    def spoil(self, y: Tensor, x: Tensor, given: dict[str, Any]) -> Tensor:
        return y

    def spoil_state(self, after: Any, before: Any) -> Any:
        return after


class AutocastToDouble(Further):
    def spoil(self, y: Tensor, x: Tensor, given: dict[str, Any]) -> Tensor:
        return y.double() if torch.is_autocast_enabled("cpu") else y


class AutocastSharpens(Further):
    """Under autocast the state is kept in another dtype than the products."""

    def spoil(self, y: Tensor, x: Tensor, given: dict[str, Any]) -> Tensor:
        return y * 1.3 if torch.is_autocast_enabled("cpu") and x.shape[1] == 1 else y


class GatedByExponential(Further):
    def spoil(self, y: Tensor, x: Tensor, given: dict[str, Any]) -> Tensor:
        return y + 0.0 * x.exp()


class AbsolutePositions(Further):
    """With rotary positions, half-precision angles: whole numbers above 256 collide."""

    def forward(self, x: Tensor, **given: Any) -> Any:
        if self.config.rotary_base is None:
            return super().forward(x, **given)
        positions = torch.arange(x.shape[1]).bfloat16().to(x.dtype)
        turned = x * (1 + 0.1 * (positions - torch.arange(x.shape[1])))[:, None]
        return super().forward(turned, **given)


class Forgetful(Further):
    """The state loses its oldest token once there are 300."""

    def spoil_state(self, after: Any, before: Any) -> Any:
        if after.tokens < 300 or before.tokens >= 300:
            return after
        key, value = after.key.clone(), after.value.clone()
        key[:, :, 0], value[:, :, 0] = 0, 0
        return KVCache(key, value)


class UnusedWeight(Further):
    def __init__(self, config: SoftmaxConfig, **given: Any) -> None:
        super().__init__(config, **given)
        self.gate = nn.Parameter(torch.ones(config.embed_dim, dtype=given["dtype"]))


class CutOffProjection(Further):
    """The key projection is given to nothing that learns."""

    def _project(self, source: Tensor) -> tuple[Tensor, Tensor]:
        key, value = super()._project(source)
        return key.detach() + 0 * key, value


class HiddenBuffer(Further):
    """A buffer that counts, and is not saved."""

    def __init__(self, config: SoftmaxConfig, **given: Any) -> None:
        super().__init__(config, **given)
        drawn = torch.rand(config.embed_dim, dtype=given["dtype"])
        self.register_buffer("tilt", drawn, persistent=False)

    def spoil(self, y: Tensor, x: Tensor, given: dict[str, Any]) -> Tensor:
        return y * self.tilt


class SharedCopy(Further):
    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        other = copy.copy(self)
        other._modules = dict(self._modules)
        return other


class HoldsFunction(Further):
    """What it holds cannot be pickled."""

    def __init__(self, config: SoftmaxConfig, **given: Any) -> None:
        super().__init__(config, **given)
        self.act = lambda y: y


class KeptAngles(Further):
    """Computes angles at the first call, and keeps them when it is moved."""

    kept: Tensor | None = None

    def spoil(self, y: Tensor, x: Tensor, given: dict[str, Any]) -> Tensor:
        if self.kept is None:
            self.kept = torch.arange(1, x.shape[2] + 1, dtype=x.dtype).sqrt()
        return y + (0.1 * self.kept).to(y.dtype)


class Uncopyable(KVCache):
    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return Uncopyable(self.key[:, :, 1:].clone(), self.value[:, :, 1:].clone())


class LossyState(Further):
    def spoil_state(self, after: Any, before: Any) -> Any:
        return Uncopyable(after.key, after.value)


class OpenConfig(SoftmaxConfig):
    """Accepts every field, and ignores those that it does not know."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class DropsWithoutEnd(Further):
    """Never leaves training."""

    def train(self, mode: bool = True) -> Any:
        return super().train(True)


class DropsNoMore(Further):
    """One evaluation ends dropout for good."""

    def train(self, mode: bool = True) -> Any:
        if not mode:
            self.config = self.config.model_copy(update={"dropout_p": 0.0})
        return super().train(mode)


class StepsReversed(Further):
    """Gives the samples of a single step in reverse."""

    def spoil(self, y: Tensor, x: Tensor, given: dict[str, Any]) -> Tensor:
        return y.reshape(-1, y.shape[2]).flip(0).reshape(y.shape) if y.shape[1] == 1 else y


class RowsByBatch(Further):
    """Reads samples and tokens as one axis, in the wrong order."""

    def forward(self, x: Tensor, **given: Any) -> Any:
        return super().forward(x.transpose(0, 1).reshape(x.shape), **given)


class WeightsUnheard(Further):
    """Takes the request for weights, and returns none."""

    def forward(self, x: Tensor, need_weights: bool = False, **given: Any) -> Any:
        return super().forward(x, **given)


class Showing(SelfAttentionLayer):
    """Shows other weights than those it uses."""

    def forward(self, x: Tensor, **given: Any) -> Any:
        found = super().forward(x, **given)
        if not given.get("need_weights"):
            return found
        return *found[:-1], self.shown(found[-1])

    def shown(self, weights: Tensor) -> Tensor:
        return weights


class WeightsOfHiddenKeys(Showing):
    def shown(self, weights: Tensor) -> Tensor:
        return weights + 1e-12


class WeightsNotNormalised(Showing):
    def shown(self, weights: Tensor) -> Tensor:
        return weights * (1 + 2**-16)


class WeightsEven(Showing):
    def shown(self, weights: Tensor) -> Tensor:
        seen = (weights != 0).to(weights)
        return seen / seen.sum(-1, keepdim=True)


def _showing(layer: type[Showing]) -> tuple[Any, ...]:
    name = underscored(layer)
    return replace(SELF_ATTENTION, name=f"mutant_layer{name}", layer=layer), "S10.weights", "layer"


def _layer(layer: type[SoftmaxLayer], kills: str, dtype: str = "float32") -> tuple[Any, ...]:
    return layer_variant(layer), kills, "layer", dtype


def layer_variant(
    layer: type[SoftmaxLayer],
    *,
    config: type[SoftmaxConfig] = SoftmaxConfig,
    compiles: bool = False,
) -> Variant:
    """A variant whose operation is right, and whose layer is given."""
    name = underscored(layer)
    made = variant_of(f"layer{name}", attend, compile=compiles)
    promises = made.promises.model_copy(update={"state": True, "reorder": True})
    right = made.implementations[0]
    return replace(made, layer=layer, config=config, promises=promises, implementations=(right,))


MUTANTS = (
    _layer(AutocastToDouble, "N5.autocast_layer"),
    _layer(AutocastSharpens, "N5.autocast_layer"),
    _layer(GatedByExponential, "A9.scaled_input"),
    _layer(AbsolutePositions, "A10.offset"),
    _layer(Forgetful, "T6.long_roll"),
    _layer(UnusedWeight, "N4.parameters"),
    _layer(CutOffProjection, "N4.parameters"),
    _layer(HiddenBuffer, "I4.state_dict"),
    _layer(SharedCopy, "I4.copies"),
    _layer(HoldsFunction, "I4.copies"),
    _layer(KeptAngles, "I4.moves", "bfloat16"),
    _layer(LossyState, "I4.states"),
    (layer_variant(Further, config=OpenConfig), "S10.unknown_option", "layer"),
    _layer(WeightsUnheard, "S10.weights"),
    _showing(WeightsOfHiddenKeys),
    _showing(WeightsNotNormalised),
    _showing(WeightsEven),
    _layer(StepsReversed, "T2.steps"),
    _layer(RowsByBatch, "A1.batch_independence"),
)
