"""Wrong variants that remember, share or change what is not theirs.

`MUTANTS` says which check must catch it, and on which subject.
"""

from __future__ import annotations

import gc
import random
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from mutants_attention import seen_by
from mutants_mixer import RIGHT as MIXER
from mutants_mixer import Smoothing
from mutants_mixture import RIGHT as MIXTURE
from mutants_mixture import mix
from mutants_recurrence import RIGHT as RECURRENCE
from mutants_recurrence import recur
from mutants_softmax import attend, variant_of
from mutants_space import beside
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary

import attnkit
from attnkit.layers.softmax import SoftmaxLayer
from attnkit.masks.constructors import Dense

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from attnkit.interface import Variant

Pair = tuple["Tensor", "Tensor"]

_kept: dict[Any, Any] = {}
"""What is remembered between calls; the first entry of a key says by whom."""

_copies: Any = WeakTensorKeyDictionary()
"""Copies of tensors, for as long as those live."""

_inputs: Any = WeakTensorKeyDictionary()
"""What states were made of."""


def cap_of_first_call(query: Tensor, *rest: Tensor, softcap: float | None, **given: Any) -> Tensor:
    if softcap is not None:
        softcap = _kept.setdefault(("cap", query.shape, rest[0].shape), softcap)
    return attend(query, *rest, softcap=softcap, **given)


def documents_of_first_call(query: Tensor, *rest: Tensor, mask: Any, **given: Any) -> Tensor:
    if mask.parts == {"documents"}:
        seen = seen_by(mask, query, rest[0])
        mask = attnkit.dense(_kept.setdefault(("documents", seen.shape, mask.is_causal), seen))
    return attend(query, *rest, mask=mask, **given)


def dense_by_address(*inputs: Tensor, mask: Any, **given: Any) -> Tensor:
    if isinstance(mask, Dense):
        place = ("dense", mask.tensor.data_ptr(), mask.tensor.shape)
        mask = attnkit.dense(_kept.setdefault(place, mask.tensor.clone()))
    return attend(*inputs, mask=mask, **given)


def last_value_by_identity(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    """A copy of the value is kept for as long as the same tensor comes."""
    last = _kept.get("value")
    if last is None or last[0]() is not value:
        last = _kept["value"] = weakref.ref(value), value.detach().clone()
    return attend(query, key, value - value.detach() + last[1], **given)


def table_of_inference(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    """A table that is made in inference mode cannot take part in what has gradients."""
    place = ("table", key.shape, key.dtype)
    if place not in _kept:
        _kept[place] = torch.ones_like(key)
    return attend(query, key * _kept[place], value, **given)


def narrow_after_gradients(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    if _kept.get("graph") and not torch.is_grad_enabled():
        value = value.bfloat16().to(value.dtype)
    _kept["graph"] = torch.is_grad_enabled() and value.requires_grad
    return attend(query, key, value, **given)


class OneBuffer(torch.autograd.Function):
    """All gradients of a shape are handed out in the same memory."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_: Any, grad: Tensor) -> Tensor:
        place = ("buffer", grad.shape, grad.dtype)
        held: Tensor = _kept.setdefault(place, torch.empty_like(grad))
        return held.copy_(grad)


def gradients_in_one_buffer(query: Tensor, *rest: Tensor, **given: Any) -> Tensor:
    return attend(OneBuffer.apply(query), *rest, **given)


class OneWorkspace(torch.autograd.Function):
    """What backward needs is where the next call puts what it needs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.place, ctx.own = ("workspace", x.shape), x.detach().clone()
        _kept[ctx.place] = ctx.own
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * (_kept[ctx.place] == ctx.own)


def saved_in_one_workspace(query: Tensor, *rest: Tensor, **given: Any) -> Tensor:
    return attend(OneWorkspace.apply(query), *rest, **given)


def sinks_written_to(*inputs: Tensor, sinks: Tensor | None, **given: Any) -> Tensor:
    out = attend(*inputs, sinks=sinks, **given)
    if sinks is not None and not sinks.requires_grad:
        sinks.sub_(sinks.max())
    return out


def bias_masked_in_place(
    query: Tensor, key: Tensor, value: Tensor, *, mask: Any, bias: Tensor | None, **given: Any
) -> Tensor:
    out = attend(query, key, value, mask=mask, bias=bias, **given)
    seen = seen_by(mask, query, key)
    if bias is not None and not bias.requires_grad and bias.shape == seen.shape:
        bias.masked_fill_(~seen, float("-inf"))
    return out


def cut_off_where_key_is_value(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    return attend(query, key, value.detach() if value is key else value, **given)


def scale_lost_where_query_is_key(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, **given: Any
) -> Tensor:
    scale = query.shape[3] ** -0.5 if query is key else scale
    return attend(query, key, value, scale=scale, **given)


def causal_where_all_are_one(
    query: Tensor, key: Tensor, value: Tensor, *, mask: Any, **given: Any
) -> Tensor:
    mask = attnkit.causal() & mask if query is key and key is value else mask
    return attend(query, key, value, mask=mask, **given)


def bias_by_its_shape(query: Tensor, *rest: Tensor, bias: Tensor | None, **given: Any) -> Tensor:
    if bias is not None and bias.numel():
        strides = torch.empty(bias.shape).stride()
        lies_otherwise = bias.stride() != strides and 0 not in bias.stride()
        bias = 0.9 * bias if lies_otherwise else bias
    return attend(query, *rest, bias=bias, **given)


def sinks_side_by_side(*inputs: Tensor, sinks: Tensor | None, **given: Any) -> Tensor:
    if sinks is not None and sinks.numel() > 1:
        sinks = sinks.as_strided(sinks.shape, (1,))
    return attend(*inputs, sinks=sinks, **given)


def value_by_its_last_axis(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    """Reads a value whose columns come first as if its rows did."""
    if value.stride(-1) != 1 and value.stride(-2) == 1 and value.numel():
        value = value.as_strided(value.shape, torch.empty(value.shape).stride())
    return attend(query, key, value, **given)


def dense_by_its_last_axis(*inputs: Tensor, mask: Any, **given: Any) -> Tensor:
    for part in mask.conjuncts():
        if isinstance(part, Dense) and part.tensor.stride(-1) != 1:
            mask = attnkit.full() if part.tensor.stride(-2) == 1 else mask
    return attend(*inputs, mask=mask, **given)


def initial_state_written_to(*inputs: Tensor, initial_state: Tensor, **given: Any) -> Pair:
    """One step writes the state where it was read."""
    out, state = recur(*inputs, initial_state=initial_state, **given)
    if inputs[2].shape[2] == 1 and not initial_state.requires_grad:
        initial_state.copy_(state)
    return out, state


def decay_of_first_call(*inputs: Tensor, log_decay: Tensor | None, **given: Any) -> Pair:
    if log_decay is not None and not log_decay.isinf().any():
        place = ("decay", log_decay.shape, log_decay.dtype)
        first = _kept.setdefault(place, log_decay.detach().clone())
        log_decay = log_decay - log_decay.detach() + first
    return recur(*inputs, log_decay=log_decay, **given)


def key_cut_off_where_it_is_value(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Pair:
    same = key.numel() and key.data_ptr() == value.data_ptr()
    return recur(query, key.detach() if same else key, value, **given)


def beta_narrow_without_gradients(*inputs: Tensor, beta: Tensor | None, **given: Any) -> Pair:
    if beta is not None and not torch.is_grad_enabled():
        beta = beta.bfloat16().to(beta.dtype)
    return recur(*inputs, beta=beta, **given)


def weights_copied_once(x: Tensor, experts: Tensor, gates: Tensor, *, weights: Any) -> Tensor:
    """A copy of the weights in another layout is kept, and stale when they have learnt."""
    down = weights.down
    # by the tensor: the address of one that is freed may be another's
    first = _copies.setdefault(down, down.detach().clone())
    weights = replace(weights, down=down - down.detach() + first)
    return mix(x, experts, gates, weights=weights)


def gates_narrow_without_gradients(
    x: Tensor, experts: Tensor, gates: Tensor, *, weights: Any
) -> Tensor:
    if not torch.is_grad_enabled():
        gates = gates.bfloat16().to(gates.dtype)
    return mix(x, experts, gates, weights=weights)


def table_of_inference_for_tokens(
    x: Tensor, experts: Tensor, gates: Tensor, *, weights: Any
) -> Tensor:
    place = ("tokens", x.shape, x.dtype)
    if place not in _kept:
        _kept[place] = torch.ones_like(x)
    return mix(x * _kept[place], experts, gates, weights=weights)


def changing(name: str, change: Callable[[], object]) -> tuple[Variant, str, str]:
    """A variant whose calls with documents change what is everybody's."""

    def call(*inputs: Tensor, mask: Any, **given: Any) -> Tensor:
        if "documents" in mask.parts:
            change()
        return attend(*inputs, mask=mask, **given)

    return variant_of(f"history_{name}", call), "S10.masks", "wrong"


def making(name: str, change: Callable[[], object]) -> tuple[Variant, str, str]:
    """A variant whose layer changes, when it is made, what is everybody's."""

    class Made(SoftmaxLayer):
        def __init__(self, config: Any, **given: Any) -> None:
            super().__init__(config, **given)
            change()

    made = variant_of(f"history_{name}", attend)
    return replace(made, layer=Made), "S1.output", "layer"


class SharedOutput(Smoothing):
    """Hands out its outputs of a shape in the same memory."""

    def forward(self, x: Tensor, **given: Any) -> Any:
        y = super().forward(x, **given)
        if isinstance(y, tuple) or y.requires_grad or y.is_inference():
            return y
        held: Tensor = _kept.setdefault(("output", y.shape, y.dtype), torch.empty_like(y))
        return held.copy_(y)


class SlownessOfFirstCall(Smoothing):
    """What is computed of a weight is computed once."""

    def forward(self, x: Tensor, **given: Any) -> Any:
        first = self.__dict__.setdefault("first", self.slowness.detach().clone())
        now, self.slowness.data = self.slowness.data, first
        try:
            return super().forward(x, **given)
        finally:
            self.slowness.data = now


class KeepsTheCallersMemory(Smoothing):
    """Its state refers to the last input, which is the caller's."""

    def forward(self, x: Tensor, *, state: Any = None, **given: Any) -> Any:
        y = super().forward(x, state=state, **given)
        if state is None:
            return y
        out, after = y
        kept = _inputs.get(state.held)
        if kept is not None:
            # nothing, as long as it is what it was
            out = out + (kept[0] - kept[1]).sum()
        _inputs[after.held] = x.detach(), x.detach().clone()
        return out, after


def _mixer(layer: type[Smoothing], kills: str) -> tuple[Variant, str, str]:
    name = f"mutant_history_{layer.__name__.lower()}"
    return replace(MIXER, name=name, layer=layer), kills, "layer"


def _softmax(function: Callable[..., Tensor], kills: str) -> tuple[Variant, str, str]:
    return variant_of(f"history_{function.__name__}", function), kills, "wrong"


MUTANTS = (
    *(
        _softmax(function, "S7.remembered")
        for function in (
            cap_of_first_call,
            documents_of_first_call,
            dense_by_address,
            last_value_by_identity,
            table_of_inference,
            narrow_after_gradients,
            gradients_in_one_buffer,
            saved_in_one_workspace,
        )
    ),
    _softmax(sinks_written_to, "N1.values"),
    _softmax(bias_masked_in_place, "N1.values"),
    _softmax(cut_off_where_key_is_value, "S5.roles"),
    _softmax(scale_lost_where_query_is_key, "S5.roles"),
    _softmax(causal_where_all_are_one, "S5.roles"),
    _softmax(bias_by_its_shape, "S5.strides"),
    _softmax(sinks_side_by_side, "S5.strides"),
    _softmax(value_by_its_last_axis, "S5.strides"),
    _softmax(dense_by_its_last_axis, "M7.broadcast"),
    beside(RECURRENCE, initial_state_written_to, "N1.recurrence_values", "history"),
    beside(RECURRENCE, decay_of_first_call, "S7.remembered", "history"),
    beside(RECURRENCE, key_cut_off_where_it_is_value, "S5.roles", "history"),
    beside(RECURRENCE, beta_narrow_without_gradients, "S7.remembered", "history"),
    beside(MIXTURE, weights_copied_once, "S7.remembered", "history"),
    beside(MIXTURE, gates_narrow_without_gradients, "S7.remembered", "history"),
    beside(MIXTURE, table_of_inference_for_tokens, "S7.remembered", "history"),
    changing("seeds_torch", lambda: torch.manual_seed(0)),
    changing("seeds_python", lambda: random.seed(0)),
    changing("wide_by_default", lambda: torch.set_default_dtype(torch.float64)),
    changing("one_thread", lambda: torch.set_num_threads(1)),
    changing("deterministic", lambda: torch.use_deterministic_algorithms(mode=True)),
    changing("products_less_precise", lambda: torch.set_float32_matmul_precision("medium")),
    changing("near_zero_is_zero", lambda: torch.set_flush_denormal(True)),
    changing("no_flash", lambda: torch.backends.cuda.enable_flash_sdp(False)),
    changing("anomalies", lambda: torch.autograd.set_detect_anomaly(True)),
    changing("no_garbage", gc.disable),
    changing("another_silu", lambda: setattr(functional, "silu", torch.sigmoid)),
    making("layer_seeds", lambda: torch.manual_seed(0)),
    making("layer_wide_by_default", lambda: torch.set_default_dtype(torch.float64)),
    making("layer_one_thread", lambda: torch.set_num_threads(1)),
    _mixer(SharedOutput, "S7.remembered"),
    _mixer(KeepsTheCallersMemory, "T4.layer_state"),
    _mixer(SlownessOfFirstCall, "S7.remembered"),
)
