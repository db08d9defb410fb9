"""Layers that go wrong with a state, in a mode, with a context, or take what they cannot.

`MUTANTS` says which check must catch it, on which subject.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from mutants_layers import Further, layer_variant

import attnkit
from attnkit.errors import MaskError
from attnkit.layers.rotary import rotate
from attnkit.layers.softmax import SoftmaxLayer
from attnkit.masks.constructors import Documents
from attnkit.state import KVCache

if TYPE_CHECKING:
    from torch import Tensor

    from attnkit.layers.softmax_config import SoftmaxConfig
    from attnkit.masks.constructors import Mask


class PaddingForgottenByState(Further):
    """Applies the mask to the prompt alone."""

    def forward(self, x: Tensor, **given: Any) -> Any:
        if given.get("state") is not None and given["state"].tokens:
            given["mask"] = attnkit.full()
        return super().forward(x, **given)


class DocumentsForgottenByState(Further):
    def forward(self, x: Tensor, **given: Any) -> Any:
        if given.get("state") is not None and given["state"].tokens:
            parts = given.get("mask", attnkit.full()).conjuncts()
            kept = attnkit.full()
            for part in parts:
                kept = kept if isinstance(part, Documents) else kept & part
            given["mask"] = kept
        return super().forward(x, **given)


class QueryRotatedFromZero(SoftmaxLayer):
    """Rotates the queries of a piece as if it were the first."""

    def _query(self, x: Tensor) -> Tensor:
        query = super()._query(x)
        if self.config.rotary_base is None:
            return query
        back = rotate(query, first=-self.seen, base=self.config.rotary_base)
        return query if not self.seen else back

    def forward(self, x: Tensor, **given: Any) -> Any:
        state = given.get("state")
        self.seen = 0 if state is None else state.tokens
        return super().forward(x, **given)


class SinksLeftOutOfSteps(Further):
    def forward(self, x: Tensor, **given: Any) -> Any:
        if self.sinks is None or x.shape[1] != 1:
            return super().forward(x, **given)
        held, self.sinks = self.sinks, None
        try:
            return super().forward(x, **given)
        finally:
            self.sinks = held


class BiasLeftOut(SoftmaxLayer):
    def __init__(self, config: SoftmaxConfig, **given: Any) -> None:
        super().__init__(config.model_copy(update={"projection_bias": False}), **given)


class RotaryLeftOut(SoftmaxLayer):
    def __init__(self, config: SoftmaxConfig, **given: Any) -> None:
        super().__init__(config.model_copy(update={"rotary_base": None}), **given)


class StateInPlace(Further):
    """Writes every state into one buffer, so that a second continuation overwrites the first."""

    room: tuple[Tensor, ...] = ()

    def spoil_state(self, after: Any, before: Any) -> Any:
        held, tokens = (after.key, after.value), after.key.shape[2]
        if not self.room or len(self.room[0]) != after.batch_size:
            self.room = tuple(t.new_zeros(*t.shape[:2], 700, t.shape[3]) for t in held)
        with torch.no_grad():
            for buffer, part in zip(self.room, held, strict=True):
                buffer[:, :, :tokens] = part
        return KVCache(*(buffer[:, :, :tokens] for buffer in self.room))


class PaddingSeenInTraining(Further):
    def forward(self, x: Tensor, **given: Any) -> Any:
        return super().forward(x, **(given | ({"mask": attnkit.full()} if self.training else {})))


class PaddingSeenWithoutGradients(Further):
    """A fast path of inference that knows no masks."""

    def forward(self, x: Tensor, **given: Any) -> Any:
        seen = {} if torch.is_grad_enabled() else {"mask": attnkit.full()}
        return super().forward(x, **(given | seen))


class SharperWithoutGradients(Further):
    def spoil(self, y: Tensor, x: Tensor, given: dict[str, Any]) -> Tensor:
        return y if torch.is_grad_enabled() else y * 1.01


class KeepsInferenceTensor(Further):
    """Keeps what it computed at the first call, be it under inference_mode."""

    kept: Tensor | None = None

    def spoil(self, y: Tensor, x: Tensor, given: dict[str, Any]) -> Tensor:
        if self.kept is None:
            self.kept = torch.ones(y.shape[2], dtype=y.dtype, device=y.device)
        return y * self.kept


class SwallowsKeywords(SoftmaxLayer):
    def forward(
        self,
        x: Tensor,
        *,
        mask: Mask = attnkit.full(),
        context: Tensor | None = None,
        state: Any = None,
        **unknown: Any,
    ) -> Any:
        return super().forward(x, mask=mask, context=context, state=state)


class CastsInput(Further):
    def forward(self, x: Any, **given: Any) -> Any:
        if isinstance(x, torch.Tensor):
            x = x.to(self.q_proj.weight.dtype)
        return super().forward(x, **given)


class CutsInput(Further):
    def forward(self, x: Any, **given: Any) -> Any:
        if isinstance(x, torch.Tensor):
            x = x[..., : self.config.embed_dim]
        return super().forward(x, **given)


class LeavesMaskOut(Further):
    """Goes on without a mask that does not fit."""

    def forward(self, x: Tensor, **given: Any) -> Any:
        try:
            return super().forward(x, **given)
        except MaskError:
            return super().forward(x, **(given | {"mask": attnkit.full()}))


class RepeatsState(Further):
    """Gives the first sample's state to all where there are too few or too many."""

    def forward(self, x: Tensor, **given: Any) -> Any:
        state = given.get("state")
        if isinstance(state, KVCache) and state.batch_size != len(x):
            given["state"] = state.reorder(torch.zeros(len(x), dtype=torch.long))
        return super().forward(x, **given)


class OtherContext(SoftmaxLayer):
    """Has a context, or a mask of it, that is not the one given."""

    def forward(
        self,
        x: Tensor,
        *,
        mask: Mask = attnkit.full(),
        context: Tensor | None = None,
        **given: Any,
    ) -> Any:
        if context is not None and context.shape[-1] == self.config.context_dim:
            context, mask = self.other(context, mask)
        return super().forward(x, mask=mask, context=context, **given)

    def other(self, context: Tensor, mask: Mask) -> tuple[Tensor, Mask]:
        return context, mask


class ContextOfFirstSample(OtherContext):
    def other(self, context: Tensor, mask: Mask) -> tuple[Tensor, Mask]:
        return context[:1].expand_as(context), mask


class ContextHiddenCausally(OtherContext):
    def other(self, context: Tensor, mask: Mask) -> tuple[Tensor, Mask]:
        return context, mask & attnkit.causal()


class ContextPaddingSeen(OtherContext):
    def other(self, context: Tensor, mask: Mask) -> tuple[Tensor, Mask]:
        return context.nan_to_num(), attnkit.full()


KILLS: dict[type[SoftmaxLayer], str] = {
    PaddingForgottenByState: "T7.masked_steps",
    DocumentsForgottenByState: "T7.masked_steps",
    QueryRotatedFromZero: "T7.option_steps",
    SinksLeftOutOfSteps: "T7.option_steps",
    BiasLeftOut: "S10.layer_options",
    RotaryLeftOut: "S10.layer_options",
    StateInPlace: "T4.layer_state",
    PaddingSeenInTraining: "S11.modes",
    PaddingSeenWithoutGradients: "S11.modes",
    SharperWithoutGradients: "S11.modes",
    KeepsInferenceTensor: "S11.modes",
    SwallowsKeywords: "S10.layer_arguments",
    CastsInput: "S10.layer_arguments",
    CutsInput: "S10.layer_arguments",
    LeavesMaskOut: "S10.layer_arguments",
    RepeatsState: "S10.layer_arguments",
    ContextOfFirstSample: "M14.context",
    ContextHiddenCausally: "M14.context",
    ContextPaddingSeen: "M14.context_padding",
}

MUTANTS = tuple((layer_variant(layer), kills, "layer") for layer, kills in KILLS.items())
