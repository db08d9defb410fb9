"""Deliberately wrong softmax variants, and a right one.

Each is a real `attnkit.Variant` whose functions compute the definition but for one mistake.
`MUTANTS` says which check must catch it, and on which subject: ``wrong``, ``auto`` or ``layer``.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from attnkit.interface import Implementation, Variant
from attnkit.layers.softmax import SoftmaxLayer
from attnkit.layers.softmax_config import SoftmaxConfig
from attnkit.masks.constructors import Sizes
from attnkit.state import KVCache
from attnkit_plugins.softmax.multi_head import VARIANT as MULTI_HEAD

if TYPE_CHECKING:
    import attnkit

PROMISES = MULTI_HEAD.implementations[0].promises.model_copy(
    update={"devices": ("cpu",), "compile": False}
)


class Passing(torch.autograd.Function):
    """Returns what it is given; its subclasses have a backward of their own."""

    @staticmethod
    def forward(_: Any, out: torch.Tensor) -> torch.Tensor:
        return out.clone()


def attend(  # one branch per mistake, beside the line it spoils
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    mask: attnkit.Mask,
    bias: torch.Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
    dropout_p: float,
    mistake: str = "",
) -> torch.Tensor:
    sizes = Sizes(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    batch, heads, queries, keys = sizes
    shared = heads // key.shape[1]
    seen = mask.to_bool(sizes, query.device).expand(*sizes).clone()
    dtype, wide = query.dtype, torch.promote_types(query.dtype, torch.float32)
    if mistake == "in_place_scaling":
        query.detach().mul_(scale)
        scale = 1.0
    if mistake == "stride_blind":
        query = torch.as_strided(query, query.shape, torch.empty(query.shape).stride())
    if mistake == "width_multiple_of_8" and query.shape[3] % 8:
        query = query[..., : query.shape[3] // 8 * 8]
        key = key[..., : query.shape[3]]
    if mistake == "heads_tiled":
        key, value = key.repeat(1, shared, 1, 1), value.repeat(1, shared, 1, 1)
    else:
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    query, key, value = query.to(wide), key.to(wide), value.to(wide)
    if mistake == "scale_twice":
        scale = scale * scale
    if mistake == "scale_off_by_a_hundredth":
        scale = scale * 1.01
    if mistake == "upper_left_causal" and mask.is_causal and queries != keys:
        seen = torch.ones_like(seen).tril()
    if mistake == "window_off_by_one" and mask.window is not None and keys > mask.window:
        seen = seen | seen.roll(-1, -1).tril(keys - queries)
    if mistake == "leak_at_one_position" and queries == keys > 150:
        seen[..., 140, 150] = True
    if mistake == "tail_dropped" and keys > 64 and keys % 64:
        seen[..., :, keys - 1] = False
    if mistake == "extra_key":
        seen[..., queries - 1, 0] = True
    if mistake == "documents_leak" and "documents" in mask.parts and keys > 100:
        seen[..., keys - 20, 0] = True
    if mistake == "dense_ignored" and "dense" in mask.parts:
        seen = torch.ones_like(seen).tril(keys - queries)
    if mistake == "first_key_dropped_in_chunks" and 1 < queries < keys:
        seen[..., 0] = False
    logits = scale * query @ key.mT
    if softcap is not None and mistake != "softcap_ignored":
        logits = softcap * torch.tanh(logits / softcap)
    if bias is not None:
        logits = logits + bias.to(wide)
    if mistake == "mean_for_masked_rows":
        logits = logits.masked_fill(~seen, torch.finfo(wide).min)
    else:
        logits = logits.masked_fill(~seen, float("-inf"))
    if sinks is not None:
        sink = sinks.to(wide)[:, None, None].expand(batch, heads, queries, 1)
        logits = torch.cat((logits, sink), -1)
    empty = (logits == float("-inf")).all(-1, keepdim=True)
    weights = torch.where(empty, 0.0, torch.where(empty, 0.0, logits).softmax(-1))[..., :keys]
    if mistake == "missing_renormalisation":
        weights = weights * (1 - 1e-3)
    if mistake == "gated_by_value":
        value = value * value.sigmoid()
    out = weights @ value
    if mistake == "batch_leak":
        out = out + 1e-3 * out.mean(0, keepdim=True)
    if mistake == "nondeterministic":
        out = out * (1 + 1e-6 * torch.rand(()))
    if mistake == "wrong_gradient":
        out = out + 0.01 * (out - out.detach())
    return out if mistake == "output_not_cast" else out.to(dtype)


def _softmax(name: str, **changes: Any) -> Variant:
    """A softmax variant: the right reference, and ``wrong`` with the mistake of its name."""
    promises = changes.pop("promises", PROMISES)
    inner = changes.pop("inner", promises)
    right = Implementation(
        name="reference", function=attend, summary="", promises=inner, cost=lambda _: 1.0
    )
    wrong = functools.partial(attend, mistake=name)
    return Variant(
        name=f"mutant_{name}",
        family="softmax",
        summary="",
        source="",
        relation="exact",
        promises=promises,
        config=changes.pop("config", SoftmaxConfig),
        layer=changes.pop("layer", SoftmaxLayer),
        implementations=(right, replace(right, name="wrong", function=wrong)),
    )


def variant_of(name: str, function: Any, *, mistake: str = "", **update: Any) -> Variant:
    """A softmax variant whose ``wrong`` is a function; ``update`` changes its promises."""
    promises = PROMISES.model_copy(update=update)
    made = _softmax(name, promises=promises)
    right, wrong = made.implementations
    given = {"mistake": mistake} if mistake else {}
    wrong = replace(wrong, function=functools.partial(function, **given))
    return replace(made, implementations=(right, wrong))


RIGHT = _softmax("none", promises=PROMISES.model_copy(update={"state": True, "reorder": True}))


class Spoilt(SoftmaxLayer):
    """A layer whose outputs, or state, have a mistake."""

    mistake = ""

    def forward(self, x: torch.Tensor, **given: Any) -> Any:
        if self.mistake == "padding_content_leaks":
            return super().forward(x, **given) + 1e-3 * x.mean(1, keepdim=True)
        if self.mistake == "refuses_empty" and not x.numel():
            raise RuntimeError("empty")
        state = given.get("state")
        if self.mistake == "state_changed" and state is not None and state.tokens:
            state.key.mul_(1.5)
        if self.mistake == "state_reordered_by_nothing" and state is not None:
            y, after = super().forward(x, **given)
            return y, Unordered(after.key, after.value)
        if self.mistake in ("cut_too_little", "cut_silently") and state is not None:
            y, after = super().forward(x, **given)
            return y, Uncut(after.key, after.value)
        return super().forward(x, **given)


class Unordered(KVCache):
    def reorder(self, index: torch.Tensor) -> Any:
        return type(self)(
            self.key[: len(index)].repeat(2, 1, 1, 1)[: len(index)],
            self.value[: len(index)].repeat(2, 1, 1, 1)[: len(index)],
        )


class Uncut(KVCache):
    """Cutting forgets the oldest tokens in place of the latest."""

    def truncate(self, tokens: int) -> Any:
        start = self.tokens - tokens
        return type(self)(self.key[:, :, start:], self.value[:, :, start:])


def _layer(name: str, **update: Any) -> Variant:
    layer = type("Spoilt", (Spoilt,), {"mistake": name})
    promises = PROMISES.model_copy(update={"state": True, **update})
    return _softmax(name, promises=promises, inner=PROMISES, layer=layer)


class OptionIgnored(SoftmaxLayer):
    def __init__(self, config: SoftmaxConfig, **given: Any) -> None:
        super().__init__(config.model_copy(update={"softcap": None}), **given)


def _less(name: str, **update: Any) -> Variant:
    """A variant that promises less than its implementations do: nothing refuses."""
    promises = PROMISES.model_copy(update=update)
    return _softmax(name, promises=promises, inner=PROMISES)


MUTANTS = (
    (_softmax("output_not_cast"), "S1.output", "wrong", "bfloat16"),
    (_softmax("in_place_scaling"), "S2.inputs_unchanged", "wrong"),
    (_softmax("nondeterministic"), "S3.determinism", "wrong"),
    (_softmax("stride_blind"), "S5.strides", "wrong"),
    (_softmax("tail_dropped"), "S8.lengths", "wrong"),
    (_layer("refuses_empty"), "S8.empty", "layer"),
    (_softmax("width_multiple_of_8"), "S8.widths", "wrong"),
    (_softmax("softcap_ignored"), "S10.promised", "wrong"),
    (_less("softcap_in_silence", softcap=False), "S10.refused", "auto"),
    (_softmax("dense_ignored"), "S10.masks", "wrong"),
    (_less("window_not_needed", needs=("window",)), "S10.needs", "auto"),
    (_less("heads_in_silence", heads="one"), "S10.heads", "auto"),
    (_less("dtype_in_silence", dtypes=("float32",)), "S10.dtypes", "auto"),
    (_less("gradients_in_silence", gradients=False), "S10.gradients", "auto"),
    (_softmax("layer_option_ignored", layer=OptionIgnored), "S10.layer_options", "layer"),
    (_softmax("leak_at_one_position"), "M1.suffix_perturbation", "wrong"),
    (_softmax("extra_key"), "M3.support", "wrong"),
    (_softmax("window_off_by_one"), "M4.window", "wrong"),
    (_softmax("upper_left_causal"), "M5.alignment", "wrong"),
    (_softmax("documents_leak"), "M11.documents", "wrong"),
    (_softmax("mean_for_masked_rows"), "M8.masked_rows", "wrong"),
    (_layer("padding_content_leaks"), "M9.padding_content", "layer"),
    (_softmax("batch_leak"), "A1.batch_independence", "wrong"),
    (_softmax("heads_tiled"), "A2.head_map", "wrong"),
    (_softmax("scale_twice"), "A3.temperature", "wrong"),
    (_softmax("missing_renormalisation"), "A4.row_sums", "wrong"),
    (_softmax("gated_by_value"), "A5.linear_in_value", "wrong"),
    (_softmax("first_key_dropped_in_chunks"), "T3.chunks", "wrong"),
    (_layer("state_changed"), "T4.layer_state", "layer"),
    (_layer("state_reordered_by_nothing", reorder=True), "T4.layer_state", "layer"),
    (_layer("cut_too_little", truncate=True), "T4.truncate", "layer"),
    (_layer("cut_silently"), "T4.refuses_truncate", "layer"),
    (_softmax("scale_off_by_a_hundredth"), "N1.forward", "wrong"),
    (_softmax("wrong_gradient"), "N2.backward", "wrong"),
)
