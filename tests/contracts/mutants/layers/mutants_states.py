"""States that go wrong as decoding uses them: grown, reordered, cut back, branched, padded.

The layers around them are right, and so is what one call gives.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import torch
from mutants_layers import underscored
from torch import Tensor
from torch.nn.functional import one_hot

import attnkit
from attnkit.layers.softmax import SoftmaxLayer
from attnkit.masks.constructors import Dense
from attnkit.state import KVCache, RecurrentState, WindowCache
from attnkit_plugins.recurrence.gated_linear import VARIANT as GATED_LINEAR
from attnkit_plugins.recurrence.gated_linear.layer import GatedLinearLayer
from attnkit_plugins.recurrence.linear import VARIANT as LINEAR
from attnkit_plugins.recurrence.linear.layer import LinearLayer
from attnkit_plugins.recurrence.state_space import VARIANT as STATE_SPACE
from attnkit_plugins.recurrence.state_space.layer import StateSpaceLayer
from attnkit_plugins.softmax.multi_head import VARIANT as MULTI_HEAD
from attnkit_plugins.softmax.sliding_window import VARIANT as SLIDING_WINDOW

if TYPE_CHECKING:
    from attnkit.interface import Variant


class InverseOrder(KVCache):
    def reorder(self, index: Tensor) -> Self:
        return super().reorder(index.argsort() if len(index) == self.batch_size else index)


class KeysReorderedAlone(KVCache):
    def reorder(self, index: Tensor) -> Self:
        moved = super().reorder(index)
        value = self.value if len(index) == self.batch_size else moved.value
        return type(self)(moved.key, value)


class ReorderedInPlace(KVCache):
    def reorder(self, index: Tensor) -> Self:
        if len(index) != self.batch_size:
            return super().reorder(index)
        self.key.copy_(self.key[index])
        self.value.copy_(self.value[index])
        return type(self)(self.key, self.value)


class ReorderedByProduct(KVCache):
    """0 * NaN of a sample that is left out is NaN."""

    def reorder(self, index: Tensor) -> Self:
        picked = one_hot(index, self.batch_size).to(self.key)
        pair = (torch.einsum("ab,bhse->ahse", picked, each) for each in (self.key, self.value))
        return type(self)(*pair)


class RoomFor(KVCache):
    """Forgets the oldest keys when there is no more room."""

    room: int

    def append(self, key: Tensor, value: Tensor) -> Self:
        longer = super().append(key, value)
        old = max(0, longer.tokens - self.room)
        mask = (torch.arange(longer.tokens) >= old).to(key)[:, None]
        return type(self)(longer.key * mask, longer.value * mask) if old else longer


class RoomFor64(RoomFor):
    room = 64


class RoomFor128(RoomFor):
    room = 128


class LastKeyLostInGrowth(KVCache):
    def append(self, key: Tensor, value: Tensor) -> Self:
        longer = super().append(key, value)
        if not self.tokens <= 16 < longer.tokens or self.tokens < 1:
            return longer
        kept = (torch.arange(longer.tokens) != self.tokens - 1).to(key)[:, None]
        return type(self)(longer.key * kept, longer.value * kept)


class CutWritesBack(KVCache):
    """What follows a cut is written over what the longer state holds."""

    longer: KVCache | None = None

    def truncate(self, tokens: int) -> Self:
        cut = super().truncate(tokens)
        cut.longer = self
        return cut

    def append(self, key: Tensor, value: Tensor) -> Self:
        if self.longer is not None:
            start, stop = self.tokens, min(self.longer.tokens, self.tokens + key.shape[2])
            with torch.no_grad():
                self.longer.key[:, :, start:stop] = key[:, :, : stop - start]
                self.longer.value[:, :, start:stop] = value[:, :, : stop - start]
        return super().append(key, value)


class CutByProduct(KVCache):
    """0 * NaN of a tail that is cut off is NaN."""

    tail: Tensor | float = 0.0

    def truncate(self, tokens: int) -> Self:
        cut = super().truncate(tokens)
        cut.tail = 0 * self.value[:, :, tokens:].sum(2, keepdim=True)
        return cut

    def append(self, key: Tensor, value: Tensor) -> Self:
        return super().append(key, value + self.tail)


class NeverCutToNothing(KVCache):
    def truncate(self, tokens: int) -> Self:
        return super().truncate(tokens or min(1, self.tokens))


class WritesUnasked(KVCache):
    """Without gradients, writes behind its last token, whoever has written there."""

    rooms: tuple[Tensor, Tensor] | None = None

    def append(self, key: Tensor, value: Tensor) -> Self:
        start, stop = self.tokens, self.tokens + key.shape[2]
        if torch.is_grad_enabled() or not start:
            return super().append(key, value)
        rooms = self.rooms
        if rooms is None or rooms[0].shape[2] < stop:
            rooms = tuple(t.new_zeros(*t.shape[:2], 2 * stop, t.shape[3]) for t in (key, value))
            rooms[0][:, :, :start], rooms[1][:, :, :start] = self.key, self.value
            self.rooms = rooms
        rooms[0][:, :, start:stop], rooms[1][:, :, start:stop] = key, value
        longer = type(self)(*(room[:, :, :stop] for room in rooms))
        longer.rooms = rooms
        return longer


class NothingBeginsAnew(KVCache):
    def append(self, key: Tensor, value: Tensor) -> Self:
        empty = type(self)(self.key[:, :, :0], self.value[:, :, :0])
        return empty if self.tokens > 20 and not key.shape[2] else super().append(key, value)


class PairTakenForOne(KVCache):
    """A chunk of two tokens is cached as its first one, twice."""

    def append(self, key: Tensor, value: Tensor) -> Self:
        pair = key.shape[2] == 2 and self.tokens
        return super().append(key[:, :, [0, 0]] if pair else key, value)


class Cached(SoftmaxLayer):
    """Its cache is of another class."""

    cache: type[KVCache]

    def init_state(self, batch_size: int) -> Any:
        empty = super().init_state(batch_size)
        return self.cache(empty.key, empty.value) if isinstance(empty, KVCache) else empty


class MiscountedWindow(WindowCache):
    def reorder(self, index: Tensor) -> Self:
        moved = super().reorder(index)
        return self._with(moved.key, moved.value, tokens=moved.key.shape[2])


class WindowMiscounted(SoftmaxLayer):
    def init_state(self, batch_size: int) -> Any:
        empty = super().init_state(batch_size)
        return MiscountedWindow(empty.key, empty.value, size=empty.size, needed=empty.needed)


class HoleSeenByState(SoftmaxLayer):
    """Leaves a dense mask out where there are keys before those of the call."""

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Any) -> Tensor:
        if query.shape[2] < key.shape[2]:
            parts = [part for part in mask.conjuncts() if not isinstance(part, Dense)]
            mask = attnkit.full()
            for part in parts:
                mask &= part
        return super()._attend(query, key, value, mask)


class OthersNanReaches(SoftmaxLayer):
    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Any) -> Tensor:
        y = super()._attend(query, key, value, mask)
        return y + 0 * value.mean() if query.shape[2] < key.shape[2] else y


class StepAloneLouder(SoftmaxLayer):
    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Any) -> Tensor:
        y = super()._attend(query, key, value, mask)
        return 1.01 * y if len(query) == 1 and query.shape[2] == 1 else y


class LongChunkLosesFirstKey(SoftmaxLayer):
    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Any) -> Tensor:
        if 64 < query.shape[2] < key.shape[2]:
            key = torch.cat((0 * key[:, :, :1], key[:, :, 1:]), 2)
        return super()._attend(query, key, value, mask)


class Carried(RecurrentState):
    """Is changed before it is handed out."""

    @classmethod
    def after(cls, _before: RecurrentState, found: RecurrentState, _count: int) -> Self:
        return cls(found.memory, found.tokens, found.inputs)


class InputsNotReordered(Carried):
    def reorder(self, index: Tensor) -> Self:
        moved = super().reorder(index)
        same = len(index) == self.batch_size
        return type(self)(moved.memory, moved.tokens, self.inputs if same else moved.inputs)


class MemoryInverselyReordered(Carried):
    def reorder(self, index: Tensor) -> Self:
        moved = super().reorder(index)
        memory = self.memory[index.argsort()] if len(index) == self.batch_size else moved.memory
        return type(self)(memory, moved.tokens, moved.inputs)


class MemoryReorderedByProduct(Carried):
    def reorder(self, index: Tensor) -> Self:
        moved, picked = super().reorder(index), one_hot(index, self.batch_size).to(self.memory)
        memory = torch.einsum("ab,bhse->ahse", picked, self.memory)
        return type(self)(memory, moved.tokens, moved.inputs)


class StepInPlace(Carried):
    @classmethod
    def after(cls, before: RecurrentState, found: RecurrentState, count: int) -> Self:
        if torch.is_grad_enabled() or not before.tokens or count != 1:
            return super().after(before, found, count)
        return cls(before.memory.copy_(found.memory), found.tokens, found.inputs)


class InputsInPlace(Carried):
    @classmethod
    def after(cls, before: RecurrentState, found: RecurrentState, count: int) -> Self:
        if torch.is_grad_enabled() or not before.tokens:
            return super().after(before, found, count)
        return cls(found.memory, found.tokens, before.inputs.copy_(found.inputs))


class ShortChunkForgetsInputs(Carried):
    @classmethod
    def after(cls, _before: RecurrentState, found: RecurrentState, count: int) -> Self:
        size = found.inputs.shape[2]
        kept = (torch.arange(size) >= size - count).to(found.inputs)
        inputs = found.inputs * kept if 1 < count < size else found.inputs
        return cls(found.memory, found.tokens, inputs)


class MemoryRounded(Carried):
    @classmethod
    def after(cls, _before: RecurrentState, found: RecurrentState, _count: int) -> Self:
        return cls(found.memory.bfloat16().to(found.memory), found.tokens, found.inputs)


class Carrying:
    """Its state is of another class."""

    carried: type[Carried]

    def init_state(self, batch_size: int) -> Any:
        empty = super().init_state(batch_size)  # type: ignore[misc]  # of the layer beside it
        return self.carried(empty.memory, empty.tokens, empty.inputs)

    def forward(self, x: Tensor, *, state: Any = None, **given: Any) -> Any:
        found = super().forward(x, state=state, **given)  # type: ignore[misc]  # likewise
        if state is None:
            return found
        return found[0], self.carried.after(state, found[1], x.shape[1])


class PaddingDecays(GatedLinearLayer):
    """Padding behind a prompt decays its state."""

    def mix(self, x: Tensor, past: Any) -> tuple[Tensor, Tensor, Tensor]:
        out, memory, inputs = super().mix(x, past)
        if past.layout.keep is not None and x.shape[1]:
            ended = ~past.layout.keep[:, -1, None, None, None]
            memory = torch.where(ended, 0.9 * memory, memory)
        return out, memory, inputs


class LongChunkForgetsState(LinearLayer):
    """Of a chunk longer than a tile, all but the first tile begin anew."""

    def mix(self, x: Tensor, past: Any) -> tuple[Tensor, Tensor, Tensor]:
        out, memory, inputs = super().mix(x, past)
        if past.state.tokens and x.shape[1] > 64:
            empty = replace(past.state, memory=0 * past.state.memory)
            anew = super().mix(x, past._replace(state=empty))[0]
            out = torch.cat((out[:, :64], anew[:, 64:]), 1)
        return out, memory, inputs


def _named(one: type[Any], layer: type[Any], right: Variant) -> Variant:
    return replace(right, name=f"mutant_state{underscored(one)}", layer=layer)


CACHES = {
    InverseOrder: "T4.layer_state",
    KeysReorderedAlone: "T4.layer_state",
    ReorderedInPlace: "T4.layer_state",
    ReorderedByProduct: "T4.layer_state",
    RoomFor64: "T3.chunks",
    RoomFor128: "T3.chunks",
    LastKeyLostInGrowth: "T3.chunks",
    CutWritesBack: "T4.truncate",
    CutByProduct: "T4.truncate",
    NeverCutToNothing: "T4.truncate",
    WritesUnasked: "T4.layer_state",
    NothingBeginsAnew: "T3.chunks",
    PairTakenForOne: "T3.chunks",
}

STATES = (
    (InputsNotReordered, StateSpaceLayer, STATE_SPACE, "T4.layer_state"),
    (MemoryInverselyReordered, GatedLinearLayer, GATED_LINEAR, "T4.layer_state"),
    (MemoryReorderedByProduct, StateSpaceLayer, STATE_SPACE, "T4.layer_state"),
    (StepInPlace, GatedLinearLayer, GATED_LINEAR, "T4.layer_state"),
    (InputsInPlace, StateSpaceLayer, STATE_SPACE, "T4.layer_state"),
    (ShortChunkForgetsInputs, StateSpaceLayer, STATE_SPACE, "T3.chunks"),
    (MemoryRounded, LinearLayer, LINEAR, "T3.chunks"),
)

LAYERS: tuple[tuple[type[Any], Variant, str], ...] = (
    (WindowMiscounted, SLIDING_WINDOW, "T4.layer_state"),
    (HoleSeenByState, MULTI_HEAD, "T7.masked_steps"),
    (OthersNanReaches, MULTI_HEAD, "T4.layer_state"),
    (StepAloneLouder, MULTI_HEAD, "T2.steps"),
    (LongChunkLosesFirstKey, MULTI_HEAD, "T3.chunks"),
    (PaddingDecays, GATED_LINEAR, "T7.padded_prompt"),
    (LongChunkForgetsState, LINEAR, "T3.chunks"),
)

MUTANTS = (
    *(
        (_named(cache, type("Cached", (Cached,), {"cache": cache}), MULTI_HEAD), kills)
        for cache, kills in CACHES.items()
    ),
    *(
        (_named(one, type("Carried", (Carrying, layer), {"carried": one}), right), kills)
        for one, layer, right, kills in STATES
    ),
    *((_named(layer, layer, right), kills) for layer, right, kills in LAYERS),
)
MUTANTS = tuple((*each, "layer") for each in MUTANTS)
