"""Softmax layers and mixtures that go wrong around a right operation, at the first call.

Only a definition of the whole layer tells: what they compute is consistent with itself.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from mutants_layers import underscored
from torch import Tensor, nn
from torch.nn.functional import linear

from attnkit.layers.rotary import rotate
from attnkit.layers.softmax import SoftmaxLayer
from attnkit.masks.constructors import causal, sliding_window
from attnkit.operations.attention import attention
from attnkit_plugins.feedforward.moe import VARIANT as MOE
from attnkit_plugins.feedforward.moe.layer import MoELayer
from attnkit_plugins.softmax.block_sparse import VARIANT as BLOCK_SPARSE
from attnkit_plugins.softmax.block_sparse.layer import BlockSparseLayer
from attnkit_plugins.softmax.multi_head import VARIANT as MULTI_HEAD
from attnkit_plugins.softmax.self_attention import VARIANT as SELF_ATTENTION
from attnkit_plugins.softmax.self_attention.layer import SelfAttentionLayer
from attnkit_plugins.softmax.sliding_window import VARIANT as SLIDING_WINDOW

if TYPE_CHECKING:
    from attnkit.interface import Variant


class Biasless(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight)


class BiasedTwice(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + (0.0 if self.bias is None else self.bias)


class Transposed(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        square = self.weight.shape[0] == self.weight.shape[1]
        return linear(input, self.weight.mT if square else self.weight, self.bias)


class OfFourInterleaved(nn.Linear):
    """Takes channel c of head h for channel h of head c."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(torch.unflatten(input, -1, (4, -1)).mT.flatten(2))


class ValueBiasDropped(SoftmaxLayer):
    def make(self, new: Any) -> None:
        super().make(new)
        self.v_proj.__class__ = Biasless


class QueryBiasDropped(SoftmaxLayer):
    def make(self, new: Any) -> None:
        super().make(new)
        self.q_proj.__class__ = Biasless


class OutputBiasTwice(SoftmaxLayer):
    def make(self, new: Any) -> None:
        super().make(new)
        self.out_proj.__class__ = BiasedTwice


class OutputTransposed(SoftmaxLayer):
    def make(self, new: Any) -> None:
        super().make(new)
        self.out_proj.__class__ = Transposed


class HeadsMergedWrongly(SoftmaxLayer):
    def make(self, new: Any) -> None:
        super().make(new)
        self.out_proj.__class__ = OfFourInterleaved


class HeadsTiled(SoftmaxLayer):
    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Any) -> Tensor:
        times = query.shape[1] // key.shape[1]
        key, value = key.repeat(1, times, 1, 1), value.repeat(1, times, 1, 1)
        return super()._attend(query, key, value, mask)


class KeyAndValueExchanged(SoftmaxLayer):
    def _project(self, source: Tensor) -> tuple[Tensor, Tensor]:
        key, value = super()._project(source)
        return (value, key) if key.shape == value.shape else (key, value)


class ScaledTwice(SoftmaxLayer):
    def _query(self, x: Tensor) -> Tensor:
        return super()._query(x) * (self.config.scale or 1.0)


class ResidualInside(SoftmaxLayer):
    def _attend_to_self(self, x: Tensor, mask: Any, state: Any) -> Any:
        found = super()._attend_to_self(x, mask, state)
        return (found[0] + x, found[1]) if isinstance(found, tuple) else found + x


class SinksNegated(SoftmaxLayer):
    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Any) -> Tensor:
        config, sinks = self.config, None if self.sinks is None else -self.sinks
        rules: Any = {"scale": config.scale, "softcap": config.softcap, "variant": self.variant}
        out = attention(query, key, value, mask=mask, sinks=sinks, **rules)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class WindowTooWide(SoftmaxLayer):
    """Right with a window of 7, one too wide with any other."""

    def _own_mask(self) -> Any:
        size = self.config.window_size or 7
        return causal() & sliding_window(size + (size != 7))


class ValuesInHalf(SoftmaxLayer):
    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Any) -> Tensor:
        return super()._attend(query, key, value.bfloat16().to(value.dtype), mask)


class SharperInTraining(SoftmaxLayer):
    def _query(self, x: Tensor) -> Tensor:
        return super()._query(x) * (1.001 if self.training else 1.0)


class Rotating(SoftmaxLayer):
    """Rotates as its subclass says; the layer itself does not."""

    def _query(self, x: Tensor) -> Tensor:
        query = super()._query(x)
        base = self.config.rotary_base
        return query if base is None else self.unturned(self.turned(query, base), base)

    def _project(self, source: Tensor) -> tuple[Tensor, Tensor]:
        key, value = super()._project(source)
        base = self.config.rotary_base
        if base is None:
            return key, value
        return self.unturned(self.turned_key(key, base), base), self.turned_value(value, base)

    def unturned(self, x: Tensor, base: float) -> Tensor:
        """Undo what the layer is going to do."""
        left, right = x.chunk(2, -1)
        back = rotate(torch.cat((right, left), -1), first=0, base=base).chunk(2, -1)
        return torch.cat(back[::-1], -1)

    def turned(self, x: Tensor, base: float) -> Tensor:
        return rotate(x, first=0, base=base)

    def turned_key(self, x: Tensor, base: float) -> Tensor:
        return self.turned(x, base)

    def turned_value(self, x: Tensor, base: float) -> Tensor:
        return x


class RotaryOfFixedBase(Rotating):
    def turned(self, x: Tensor, base: float) -> Tensor:
        return rotate(x, first=0, base=10000.0)


class RotaryInterleaved(Rotating):
    def turned(self, x: Tensor, base: float) -> Tensor:
        width = x.shape[-1]
        order = torch.cat((torch.arange(0, width, 2), torch.arange(1, width, 2)))
        return rotate(x[..., order], first=0, base=base)[..., order.argsort()]


class RotaryOfHalfTheWidth(Rotating):
    def turned(self, x: Tensor, base: float) -> Tensor:
        turning, kept = x.chunk(2, -1)
        if turning.shape[-1] % 2:
            return x
        return torch.cat((rotate(turning, first=0, base=base), kept), -1)


class RotaryBackwards(Rotating):
    def turned(self, x: Tensor, base: float) -> Tensor:
        return self.unturned(x, base)


class RotaryKeysOneLate(Rotating):
    def turned_key(self, x: Tensor, base: float) -> Tensor:
        return rotate(x, first=1, base=base)


class RotaryOfValues(Rotating):
    def turned_value(self, x: Tensor, base: float) -> Tensor:
        return rotate(x, first=0, base=base) if x.shape[-1] % 2 == 0 else x


class ContextReversed(SoftmaxLayer):
    """Reads values of a context from its end."""

    def _project(self, source: Tensor) -> tuple[Tensor, Tensor]:
        key, value = super()._project(source)
        return key, value.flip(2) if self.config.context_dim is not None else value


class OneBlockMore(BlockSparseLayer):
    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Any) -> Tensor:
        right = self.config
        more = {"local_blocks": right.local_blocks and right.local_blocks + 1}
        self.config = right.model_copy(update=more)
        try:
            return super()._attend(query, key, value, mask)
        finally:
            self.config = right


class Warmer(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 1.01 * super().forward(input)


class QueriesWarmer(SelfAttentionLayer):
    def make(self, new: Any) -> None:
        super().make(new)
        self.q_proj.__class__ = Warmer


class WeightGradientDoubled(SoftmaxLayer):
    def _query(self, x: Tensor) -> Tensor:
        query = super()._query(x)
        return query + (query - query.detach())


class FirstSamplesTaught(SoftmaxLayer):
    def forward(self, x: Tensor, **given: Any) -> Any:
        return super().forward(torch.cat((x[:2], x[2:].detach())), **given)


class ManySamplesLouder(SoftmaxLayer):
    def forward(self, x: Tensor, **given: Any) -> Any:
        y = super().forward(x, **given)
        return 1.01 * y if len(x) > 4 and isinstance(y, torch.Tensor) else y


class WideLouder(SoftmaxLayer):
    def forward(self, x: Tensor, **given: Any) -> Any:
        y = super().forward(x, **given)
        return 1.01 * y if x.shape[2] > 32 and isinstance(y, torch.Tensor) else y


class AlwaysRenormalised(MoELayer):
    def _route(self, x: Tensor, keep: Tensor) -> Any:
        right = self.config
        self.config = right.model_copy(update={"renormalise": True})
        try:
            return super()._route(x, keep)
        finally:
            self.config = right


class TokensShared(MoELayer):
    def _experts(self, x: Tensor, routing: Any) -> Tensor:
        return super()._experts(x, routing) + 1e-2 * x


KILLS: tuple[tuple[type[nn.Module], Variant, str], ...] = (
    (ValueBiasDropped, MULTI_HEAD, "N1.layer_options"),
    (QueryBiasDropped, MULTI_HEAD, "N1.layer_options"),
    (OutputBiasTwice, MULTI_HEAD, "N1.layer_options"),
    (OutputTransposed, SLIDING_WINDOW, "N1.layer"),
    (HeadsMergedWrongly, MULTI_HEAD, "N1.layer"),
    (HeadsTiled, MULTI_HEAD, "N1.layer"),
    (KeyAndValueExchanged, MULTI_HEAD, "N1.layer"),
    (ScaledTwice, MULTI_HEAD, "N1.layer_options"),
    (ResidualInside, MULTI_HEAD, "N1.layer"),
    (SinksNegated, MULTI_HEAD, "N1.layer_options"),
    (WindowTooWide, SLIDING_WINDOW, "N1.layer_options"),
    (ValuesInHalf, MULTI_HEAD, "N1.layer"),
    (SharperInTraining, MULTI_HEAD, "N1.layer"),
    (RotaryOfFixedBase, MULTI_HEAD, "N1.layer_options"),
    (RotaryInterleaved, MULTI_HEAD, "N1.layer_options"),
    (RotaryOfHalfTheWidth, MULTI_HEAD, "N1.layer_options"),
    (RotaryBackwards, MULTI_HEAD, "N1.layer_options"),
    (RotaryKeysOneLate, MULTI_HEAD, "N1.layer_options"),
    (RotaryOfValues, MULTI_HEAD, "N1.layer_options"),
    (ContextReversed, MULTI_HEAD, "M14.context_padding"),
    (OneBlockMore, BLOCK_SPARSE, "N1.layer_options"),
    (QueriesWarmer, SELF_ATTENTION, "N1.layer"),
    (WeightGradientDoubled, MULTI_HEAD, "N2.layer"),
    (FirstSamplesTaught, MULTI_HEAD, "N2.layer"),
    (ManySamplesLouder, MULTI_HEAD, "A1.batch_independence"),
    (WideLouder, MULTI_HEAD, "N1.layer_options"),
    (AlwaysRenormalised, MOE, "N1.layer_options"),
    (TokensShared, MOE, "N1.layer"),
)

MUTANTS = tuple(
    (replace(right, name=f"mutant_layer{underscored(layer)}", layer=layer), kills, "layer")
    for layer, right, kills in KILLS
)
