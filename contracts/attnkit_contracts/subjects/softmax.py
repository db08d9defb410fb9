"""Softmax attention as a subject: `attnkit.attention` of one implementation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

import attnkit
from attnkit.interface import load
from attnkit.masks.constructors import Mask, Sizes
from attnkit.promises import ALL_MASK_PARTS
from attnkit_contracts.definitions import oracle
from attnkit_contracts.definitions.mistakes import other_maths
from attnkit_contracts.definitions.mistakes import softmax as mistakes
from attnkit_contracts.inputs import cuts
from attnkit_contracts.inputs.calls import GROWING, Call, normal
from attnkit_contracts.judging import units
from attnkit_contracts.judging.outputs import Bound, gradient_of
from attnkit_contracts.subjects.operations import Operation
from attnkit_contracts.subjects.target import RIGHTLY, Reading

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from torch import Tensor

    from attnkit.interface import Variant
    from attnkit.promises import MaskPart, SpeedClaim
    from attnkit_contracts.subjects.subject import Bounds, Definition, Function, Grads
    from attnkit_contracts.subjects.target import Target, Written


OPTIONS = ("bias", "sinks", "scale", "softcap")
"""What a call may bring beside its tensors and mask."""


class SoftmaxOperation(Operation):
    """`attnkit.attention` of one implementation of one variant."""

    shared = ("key", "value")
    unhidden = ("query",)
    sees_emptied = True

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self.mistakes, self.may_cancel = other_maths.MISTAKES, not self.is_exact
        if self.is_exact:
            self.steps, self.mistakes = mistakes.RIGHT, mistakes.MISTAKES

    @property
    def is_exact(self) -> bool:
        """Whether it is softmax attention itself."""
        return self.target.variant.relation == "exact"

    @property
    def heads(self) -> int:
        """As many query heads as an ordinary call has."""
        return 1 if self.promises.heads == "one" else 2

    def draw(
        self,
        label: str,
        *,
        batch: int = 2,
        length: int = 33,
        keys: int | None = None,
        heads: int | None = None,
        kv_heads: int | None = None,
        width: int = 16,
        value_width: int | None = None,
        mask: Mask | None = None,
    ) -> Call:
        """Return a call of L queries and S keys; see `Subject.draw`."""
        draw = self.random(label)
        keys = length if keys is None else keys
        heads = self.heads if heads is None else heads
        kv_heads = heads if kv_heads is None else kv_heads
        value_width = width if value_width is None else value_width
        if mask is None:
            mask = self.mask(Sizes(batch, heads, length, keys))
        tensors = {
            "query": normal(draw, batch, heads, length, width),
            "key": normal(draw, batch, kv_heads, keys, width),
            "value": normal(draw, batch, kv_heads, keys, value_width),
        }
        return Call({name: self.cast(tensor) for name, tensor in tensors.items()}, mask)

    def mask(
        self, sizes: Sizes, *, causal: bool | None = None, wide: tuple[MaskPart, ...] = ()
    ) -> Mask:
        causal = self.promises.causal if causal is None else causal
        return (attnkit.causal() if causal else attnkit.full()) & super().mask(sizes, wide=wide)

    def causal(self, call: Call) -> Call:
        return call.masked(self.mask(cuts.sizes_of(call), causal=True, wide=("padding",)))

    def plain_masks(self, sizes: Sizes) -> dict[str, Mask]:
        return {
            way: self.mask(sizes, causal=way == "causal", wide=ALL_MASK_PARTS)
            for way in ("causal", "bidirectional")
            if getattr(self.promises, way)
        }

    def draw_shared(self, label: str, *, length: int, heads: int, shared: int) -> Call:
        return self.draw(label, batch=1, length=length, heads=heads, kv_heads=shared)

    def draw_claimed(self, label: str, claim: SpeedClaim) -> Call:
        mask = attnkit.causal() if claim.causal else attnkit.full()
        if claim.window is not None:
            mask &= attnkit.sliding_window(claim.window)
        return super().draw_claimed(label, claim).masked(mask)

    def with_options(self, call: Call, label: str) -> Call:
        promised = [name for name in OPTIONS if getattr(self.promises, name)]
        return self.beside(call, promised, label)

    def beside(self, call: Call, names: Container[str], label: str) -> Call:
        """Return a call with those of `OPTIONS` that are named."""
        draw, sizes = self.random(label), cuts.sizes_of(call)
        if "bias" in names:
            bias = normal(draw, 1, sizes.heads, sizes.queries, sizes.keys)
            call = call.given(bias=self.cast(bias))
        if "sinks" in names:
            call = call.given(sinks=self.cast(normal(draw, sizes.heads)))
        if "scale" in names:
            call = call.saying(scale=0.7)
        return call.saying(softcap=1.5) if "softcap" in names else call

    def telling_calls(self) -> Iterator[Call]:
        return iter(()) if self.promises.needs else _telling_calls(self)

    def shorter(self, call: Call) -> Iterator[Call]:
        _, _, queries, keys = cuts.sizes_of(call)
        if queries == keys:
            yield from (cuts.cut(call, n, n) for n in cuts.below(keys))
        if self.promises.cross:
            yield from (cuts.cut(call, n, keys) for n in cuts.below(queries))
            yield from (cuts.cut(call, queries, n) for n in cuts.below(keys))
            if queries != keys:
                both = min(queries, keys)
                less = (n for n in (both - 1, both // 2, 1) if n)
                yield from (cuts.cut(call, queries - n, keys - n) for n in less)

    def called(self, call: Call, variant: Variant | str, implementation: str) -> Function:
        extras, mask = dict(call.extras), call.mask
        return lambda tensors: attnkit.attention(
            **{**extras, **tensors}, mask=mask, variant=variant, implementation=implementation
        )

    def function(self, call: Call) -> Function:
        return self.called(call, self.target.variant, self.target.implementation)

    def __call__(self, call: Call) -> Tensor:
        self.calls.append(call)
        self.last = f"attnkit.attention({call.describe()})"
        out: Tensor = self.watch.run(call, self.function(call))
        return out

    def pieces(self, call: Call, lengths: tuple[int, ...]) -> Tensor:
        """Return the outputs of consecutive chunks of queries, each given all keys so far."""
        outputs, start = [], 0
        for length in lengths:
            stop = start + length
            query = call.tensors["query"][:, :, start:stop]
            key, value = (call.tensors[name][:, :, :stop] for name in ("key", "value"))
            piece = call.given(query=query, key=key, value=value)
            sizes = Sizes(query.shape[0], query.shape[1], length, stop)
            outputs.append(self(piece.masked(self.mask(sizes, causal=True, wide=GROWING))))
            start = stop
        return torch.cat(outputs, -2)

    def attend(self, call: Call, how: Reading = RIGHTLY) -> oracle.Softmax:
        """Return the definition's answer in float64, and what it computed on the way."""
        if how.rules is None:
            return oracle.softmax(**call.arguments(), mask=call.mask)
        return mistakes.attend(call, how.rules, how.kept)

    def read(self, call: Call) -> tuple[Tensor, ...]:
        """Return which keys the definition sees, (B or 1, H or 1, L, S), and how it is told."""
        seen = call.mask.to_bool(cuts.sizes_of(call), call.tensors["query"].device)
        if self.is_exact:
            return (seen,)
        # other maths may look at windows, or at what is causal
        parts = repr(call.mask.key).encode()
        return seen, torch.frombuffer(bytearray(parts), dtype=torch.uint8)

    def definition(self, call: Call, rules: Any = None) -> Definition:
        if self.is_exact:
            return lambda tensors: {"out": self.attend(call.given(**tensors), Reading(rules)).out}
        if rules is not None:
            bare = load(self.target.variant.implementations[0].function)
            return lambda tensors: {
                "out": other_maths.run(other_maths.altered(call.given(**tensors), rules), bare)
            }
        # what it computes is its own: then the reference is the definition
        reference = self.called(call, self.target.variant, "reference")
        return lambda tensors: {"out": reference(tensors)}

    def bounds(self, call: Call, grads: Grads = None, how: Reading = RIGHTLY) -> Bounds:
        if not self.is_exact:
            return super().bounds(call, grads, how)
        dtype = how.dtype or self.dtype
        # a mistake may depend on the dtype of the inputs
        given = call.map(lambda _, t: t.detach().double().requires_grad_()) if grads else call
        with torch.set_grad_enabled(bool(grads)):
            exact = self.attend(given, how)
        kept = type(exact)(*(tensor.detach() for tensor in exact)) if grads else exact
        unit = units.analytic(kept, call.tensors["value"], dtype)
        found = {"out": Bound(kept.out, unit, units.ANALYTIC_GATE, "analytic units")}
        if not grads:
            return found
        inputs, grad_out = given.tensors, grads["out"]
        gradients = torch.autograd.grad(
            exact.out, list(inputs.values()), grad_out.double(), materialize_grads=True
        )
        if how.kept is not None:
            # a row of the softmax is changed by what it drops, too: no term is larger than of these
            whole = self.attend(call, how._replace(kept=None)).weights
            kept = kept._replace(weights=whole / (1 - call.extras["dropout_p"]))
        scale = call.extras.get("scale", call.tensors["query"].shape[-1] ** -0.5)
        limits = units.analytic_gradients(kept, call.tensors, grad_out, scale, dtype)
        return found | {
            gradient_of(name): found["out"]._replace(exact=gradient, unit=limits[name].detach())
            for name, gradient in zip(inputs, gradients, strict=True)
        }

    def written(
        self, name: str, variant: Written, given: list[str], *, output: str = "out"
    ) -> tuple[str, list[str]]:
        said = [f"variant={variant.name}", f'implementation="{self.target.implementation}"']
        return f"{name} = attnkit.attention", ["query", "key", "value", *given, *said]


def _telling_calls(subject: SoftmaxOperation) -> Iterator[Call]:
    promises = subject.promises
    length, heads = 20, subject.heads
    sizes = Sizes(2, heads, length, length)
    yield subject.draw("tell apart", length=length, width=20)
    for part in promises.masks:
        for causal in (True, False):
            if getattr(promises, "causal" if causal else "bidirectional"):
                mask = subject.mask(sizes, causal=causal) & subject.part(part, sizes)
                yield subject.draw("tell apart", length=length, mask=mask)
    if promises.cross:
        for queries in (7, 26):
            yield subject.draw("tell apart", length=queries, keys=length)
    if promises.gqa:
        yield subject.draw("tell apart", length=length, heads=4, kv_heads=2)
    if promises.value_width:
        yield subject.draw("tell apart", length=length, value_width=24)
    plain = subject.draw("tell apart", length=length)
    for names in (["scale"], ["softcap"], ["bias"], ["bias", "softcap"], ["sinks"],
                  ["sinks", "scale"], ["sinks", "softcap"]):  # fmt: skip
        if all(getattr(promises, name) for name in names):
            yield subject.beside(plain, names, "tell apart")
    if promises.dropout:
        yield plain.saying(dropout_p=0.5)
    if "dense" in promises.masks:
        seen = torch.rand(*sizes, generator=subject.random("tell apart masks")) < 0.7
        mask = subject.mask(sizes) & attnkit.dense(seen.to(subject.device))
        yield subject.draw("tell apart", length=length, mask=mask)
    # some mistakes begin where there are several blocks of keys
    yield subject.draw("tell apart", length=90)
