"""Outputs that are right to the bit, and gradients that are wrong: of what, how, where and when.

A line of a table is one mutant: `key lost beyond_64 window` loses the gradient of the keys beyond
the 64th, and only under a window. `MUTANTS` says which check must catch it, and on which subject.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from gradient_lines import Line, lines
from mutants_mixer import RIGHT as MIXER
from mutants_mixture import RIGHT as MIXTURE
from mutants_mixture import mix
from mutants_recurrence import RIGHT as RECURRENCE
from mutants_recurrence import recur
from mutants_softmax import Passing, attend, variant_of
from torch.func import functional_call

from attnkit.interface import Variant, load
from attnkit_plugins.feedforward.moe import VARIANT as MOE
from attnkit_plugins.recurrence.gated_linear import VARIANT as GATED_LINEAR
from attnkit_plugins.recurrence.linear import VARIANT as LINEAR
from attnkit_plugins.recurrence.state_space import VARIANT as STATE_SPACE
from attnkit_plugins.softmax.multi_head import VARIANT as MULTI_HEAD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    Tensors = dict[str, Any]


def softmax(line: Line) -> Variant:
    def function(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
        return attend(**line.inside({"query": query, "key": key, "value": value, **given}))

    return variant_of(f"gradient_of_{line.name}", function)


def recurrence(line: Line) -> Variant:
    def function(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Any:
        inputs = line.inside({"query": query, "key": key, "value": value, **given})
        found = dict(zip(("out", "state"), recur(**inputs), strict=True))
        if line.what in found and line.holds(inputs):
            found[line.what] = line.changed(found[line.what])
        return tuple(found.values())

    return _of(RECURRENCE, f"recurrence_backward_of_{line.name}", function)


def mixture(line: Line) -> Variant:
    def function(x: Tensor, experts: Tensor, gates: Tensor, *, weights: Any) -> Tensor:
        held = {"gate_up": weights.gate_up, "down": weights.down}
        wrong = line.inside({"x": x, "experts": experts, "gates": gates, **held})
        weights = replace(weights, **{name: wrong[name] for name in held})
        return mix(wrong["x"], experts, wrong["gates"], weights=weights)

    return _of(MIXTURE, f"mixture_gradient_of_{line.name}", function)


def _of(right: Variant, name: str, function: Callable[..., Any]) -> Variant:
    reference, wrong = right.implementations
    made = (reference, replace(wrong, function=function))
    return replace(right, name=f"mutant_{name}", implementations=made)


LAYERS_WHEN: dict[str, Callable[[Any, Tensors], bool]] = {
    "when_trained": lambda layer, _: layer.training,
    "when_from_a_state": lambda _, given: given.get("state") is not None,
    "when_padded": lambda _, given: "padding" in given["mask"].parts,
    "when_in_documents": lambda _, given: "documents" in given["mask"].parts,
    "when_long": lambda _, given: given["x"].shape[1] > 100,
    "when_turned": lambda layer, _: layer.config.rotary_base is not None,
    "when_windowed": lambda layer, _: layer.config.window_size is not None,
}


def layer(right: Variant, line: Line) -> Variant:
    """A layer that is right but for the gradient of its input x, or of the weights so named."""
    base: Any = load(right.layer)

    def forward(self: Any, x: Tensor, **given: Any) -> Any:
        asked = all(LAYERS_WHEN[word](self, {**given, "x": x}) for word in line.when)
        if self.__dict__.get("inside") or not asked:
            return base.forward(self, x, **given)
        self.__dict__["inside"] = True
        weights = {n: p for n, p in self.named_parameters() if line.what in (n, "weights")}
        try:
            wrong = {name: line.changed(weight) for name, weight in weights.items()}
            x = line.changed(x) if line.what == "x" else x
            return functional_call(self, wrong, (x,), given)
        finally:
            self.__dict__["inside"] = False

    made = type("Wrong", (base,), {"forward": forward})
    name = f"mutant_layer_{right.name.removeprefix('mutant_')}_gradient_of_{line.name}"
    return replace(right, name=name, layer=made, placement=None)


SOFTMAX = {
    "N2.backward": """
        query doubled last_sample
        key lost third_sample
        value negated third_head
        key lost last_head
        value doubled beyond_64
        key lost beyond_128
        query off first_token
        value lost last_column
        query lost column_65
        value lost column_65
        key doubled column_129
        key doubled window
        value doubled documents
        query off padding
        key off dense
        query doubled prefix
        value lost blocks
        bias off union
        value off when_bidirectional
        bias lost beyond_64
        bias doubled when_capped
        bias lost when_grouped padding
        bias off window
        sinks negated
        sinks lost window
        sinks doubled documents when_grouped
        query doubled when_sunk
        query off when_scaled
        key lost when_biased when_capped
        value doubled when_one_query
        key doubled when_one_head
        query doubled when_one_sample
        value off when_long
        query doubled when_wide
    """,
    "N4.subsets": """
        value off when_query_is_fixed
        key doubled when_query_is_fixed when_value_is_fixed
        bias doubled when_query_is_fixed
        sinks doubled when_value_is_fixed
        query off when_key_is_fixed
    """,
    "S5.strides": """
        value doubled when_packed
        query lost when_heads_in_tokens
        key doubled when_expanded
    """,
}

RECURRENCES = {
    "N2.recurrence_backward": """
        query doubled last_sample
        key lost last_head
        value doubled beyond_64
        key lost beyond_128
        log_decay doubled beyond_128
        log_decay lost last_sample
        log_decay off when_decay_of_head
        beta doubled beyond_64
        beta off when_no_decay
        beta doubled when_from_a_state
        initial_state doubled last_head
        initial_state off when_decay_of_channel
        initial_state doubled when_long
        initial_state lost when_grouped
        state lost
        state doubled last_head
        state off when_long
        query lost when_scaled_state
        query off when_grouped when_long
        key doubled when_wide
    """,
    "N4.subsets": """
        log_decay doubled when_query_is_fixed
        initial_state doubled when_key_is_fixed
    """,
}

MIXTURES = {
    "N2.mixture": """
        down lost last_row
        gates lost last_column
        x doubled last_column
        gate_up doubled when_many_tokens
        down off when_many_experts
        down doubled when_one_expert
        gates doubled when_padded
    """,
    "N4.subsets": """
        x doubled when_weights_are_fixed
        down doubled when_tokens_are_fixed
        gate_up off when_down_is_fixed
    """,
}

LAYERS = (
    (MULTI_HEAD, """
        weights doubled
        k_proj.weight off
        v_proj.weight lost first_rows
        q_proj.weight doubled when_trained
        v_proj.weight doubled when_from_a_state
        k_proj.weight doubled when_padded
        k_proj.weight doubled when_turned
        k_proj.weight doubled when_windowed
        k_proj.bias doubled
        sinks doubled
        x doubled when_long
    """),
    (LINEAR, "k_proj.weight doubled"),
    (GATED_LINEAR, """
        norm_weight doubled
        gate_proj.weight off
        decay_proj.1.bias doubled
    """),
    (STATE_SPACE, """
        conv_weight doubled
        conv_bias off
        dt_bias doubled
        A_log lost last_row
        D negated
        x lost token_100
    """),
    (MOE, """
        down_proj doubled when_trained
        router.weight off when_padded
    """),
    (MIXER, """
        slowness off
        gate.weight doubled
        out.weight off
        x doubled when_in_documents
    """),
)  # fmt: skip


# wrong in other ways than by a factor


class Narrow(Passing):
    @staticmethod
    def backward(_: Any, grad: Tensor) -> Tensor:
        return grad.bfloat16().to(grad.dtype)


class Latest(torch.autograd.Function):
    """Its backward finds what the latest call left."""

    latest: Tensor

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        Latest.latest = tensor.detach()
        ctx.save_for_backward(tensor)
        return tensor.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad if torch.equal(*ctx.saved_tensors, Latest.latest) else 1.5 * grad


class Reused(Passing):
    """Its backward hands out the same memory each time."""

    held: ClassVar[dict[object, Tensor]] = {}

    @staticmethod
    def backward(_: Any, grad: Tensor) -> Tensor:
        held = Reused.held.setdefault((grad.shape, grad.dtype), torch.empty_like(grad))
        return held.copy_(grad)


class Halved(Passing):
    """The gradient is right, its own is half of what it should be."""

    @staticmethod
    def backward(_: Any, grad: Tensor) -> Tensor:
        return (grad + grad.detach()) / 2


class HeadsInTokens(Passing):
    @staticmethod
    def backward(_: Any, grad: Tensor) -> Tensor:
        usual = grad.dim() == 4 and grad.transpose(1, 2).is_contiguous()
        return 2 * grad if usual and not grad.is_contiguous() else grad


def by(kind: type[torch.autograd.Function]) -> Callable[..., Tensor]:
    """A softmax whose key is passed back through a function."""

    def function(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
        return attend(query, kind.apply(key), value, **given)

    return function


class ByHand(torch.autograd.Function):
    """Its backward cannot be differentiated, and does not say so."""

    @staticmethod
    def forward(ctx: Any, run: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        ctx.inputs = [each.detach().requires_grad_() for each in inputs]
        with torch.enable_grad():
            ctx.out = run(*ctx.inputs)
        return ctx.out.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return None, *torch.autograd.grad(ctx.out, ctx.inputs, grad.detach(), retain_graph=True)


def plain_by_hand(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    if given["bias"] is not None or given["sinks"] is not None:
        return attend(query, key, value, **given)
    return ByHand.apply(lambda *inputs: attend(*inputs, **given), query, key, value)


def grad_out_as_in_tokens(query: Tensor, *rest: Tensor, **given: Any) -> Tensor:
    return HeadsInTokens.apply(attend(query, *rest, **given))


class Alone(torch.autograd.Function):
    """Doubles the gradient from the final state where it comes alone."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, state: Tensor) -> Any:
        ctx.set_materialize_grads(False)
        return out.view_as(out), state.view_as(state)

    @staticmethod
    def backward(ctx: Any, out: Tensor | None, state: Tensor | None) -> Any:
        return out, 2 * state if out is None and state is not None else state


def _mutants() -> Iterator[tuple[Any, ...]]:
    for make, tables in ((softmax, SOFTMAX), (recurrence, RECURRENCES), (mixture, MIXTURES)):
        for kills, table in tables.items():
            yield from ((make(line), kills, "wrong") for line in lines(table))
    for right, table in LAYERS:
        yield from ((layer(right, line), "N4.parameters", "layer") for line in lines(table))
    others = {
        "summed_narrowly": (by(Narrow), "N2.backward"),
        "of_the_latest_call": (by(Latest), "N4.accumulation"),
        "handed_out_twice": (by(Reused), "N4.accumulation"),
        "second_order_halved": (by(Halved), "N4.second_order"),
        "second_order_missing": (plain_by_hand, "N4.second_order"),
        "grad_out_as_in_tokens": (grad_out_as_in_tokens, "S6.grad_out_strides"),
    }
    for name, (function, kills) in others.items():
        dtype = "float64" if kills == "N4.second_order" else "float32"
        yield variant_of(f"gradient_{name}", function), kills, "wrong", dtype
    halved = _of(MIXTURE, "mixture_gradient_second_order_halved",
                 lambda x, *rest, **given: mix(Halved.apply(x), *rest, **given))  # fmt: skip
    yield halved, "N4.second_order", "wrong", "float64"
    alone = _of(RECURRENCE, "recurrence_gradient_of_state_alone",
                lambda *inputs, **given: Alone.apply(*recur(*inputs, **given)))  # fmt: skip
    yield alone, "N4.subsets", "wrong"


MUTANTS = tuple(_mutants())
