"""Layers as subjects, with a small configuration derived from the variant's fields."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import torch
from torch.func import functional_call

import attnkit
from attnkit.errors import ConfigError, UnsupportedError
from attnkit.interface import load
from attnkit.masks.constructors import Mask, Sizes
from attnkit.promises import ALL_DTYPES
from attnkit_contracts.catalogue import BrokenError, InconclusiveError
from attnkit_contracts.definitions import oracle
from attnkit_contracts.foreign.layers import is_foreign
from attnkit_contracts.inputs.calls import GROWING, Call, normal
from attnkit_contracts.inputs.options import single_options
from attnkit_contracts.instruments.process_state import OWN_SEED, quick_state
from attnkit_contracts.judging import units
from attnkit_contracts.judging.outputs import probed
from attnkit_contracts.subjects.subject import Subject
from attnkit_contracts.subjects.target import dtype_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from attnkit.interface import LayerConfig, Variant
    from attnkit.state import State
    from attnkit_contracts.subjects.subject import Bounds, Definition, Function, Grads
    from attnkit_contracts.subjects.target import Target, Written

EMBED_DIM = 32

SAMPLES: dict[str, Any] = {
    "embed_dim": EMBED_DIM,
    "num_heads": 4,
    "head_dim": 8,
    "window_size": 7,
    "hidden_dim": 24,
    "num_experts": 4,
    "top_k": 2,
    "block_size": 8,
    "state_size": 8,
    "chunk_size": 8,
}
"""Values for fields that have no default; a field's own ``examples`` go before these."""


def sample_options(variant: Variant) -> dict[str, Any]:
    """Return options that build a small layer of a variant.

    Every field without a default takes its first ``examples`` value, or one of `SAMPLES`.

    Raises:
        InconclusiveError: A field has neither.
    """
    fields = variant.config.model_fields
    options: dict[str, Any] = {}
    for name, field in fields.items():
        if field.examples:
            options[name] = field.examples[0]
        elif field.is_required():
            if name not in SAMPLES:
                raise InconclusiveError(
                    f"{variant.config.__name__}.{name} has no default; say a value to check "
                    f"with as Field(examples=[...])"
                )
            options[name] = SAMPLES[name]
    if "num_heads" in fields and variant.promises.heads == "one":
        options["num_heads"] = 1
    if "num_kv_heads" in fields and variant.promises.gqa:
        options.setdefault("num_kv_heads", max(1, options.get("num_heads", 2) // 2))
    if "is_causal" in fields and variant.promises.causal:
        options["is_causal"] = True
    if "window_size" in fields and "window" in variant.promises.needs:
        options.setdefault("window_size", SAMPLES["window_size"])
    return options


def build(target: Target, dtype: torch.dtype, **options: Any) -> Any:
    """Return a layer of the target's variant; the same weights for every dtype, but rounded."""
    chosen = {**sample_options(target.variant), **options}
    if target.implementation != "layer":
        chosen.setdefault("implementation", target.implementation)
    with torch.random.fork_rng(devices=[]):
        # the processor's alone: torch.manual_seed tells absent devices too, in 2 ms a call
        torch.default_generator.manual_seed(target.seed + OWN_SEED)
        before = quick_state()
        layer = attnkit.create(target.variant, dtype=torch.float32, **chosen)
        changed = [name for name, now in quick_state().items() if now != before[name]]
        if torch.initial_seed() != target.seed + OWN_SEED:
            changed.append("the seed of torch's random numbers")
    if changed:
        raise BrokenError(f"making a layer changes {', '.join(changed)}")
    return layer.to(device=target.device, dtype=dtype).eval()


class LayerSubject(Subject):
    """The layer of a variant; of one implementation where the family has no operation.

    Attributes:
        given: Options beyond those of `sample_options`.
        layer: In evaluation mode.
    """

    def __init__(self, target: Target, **options: Any) -> None:
        super().__init__(target)
        self.given = options
        self.layer = build(target, self.dtype, **options)
        self.needs = target.promises.needs if self._refuses_bare() else ()

    def remade(self, **options: Any) -> Self:
        """Return a subject of the same target with a layer that is made anew, with options."""
        made = type(self)(self.target, **options)
        self.remakes.append(made)
        return made

    def in_company(self) -> Self:
        """Return a subject of the same target with all `single_options` that go together."""
        found = self
        for options in single_options(self.config):
            try:
                made = self.remade(**{**found.given, **options})
                made(made.draw("in company", length=2))
            except (ConfigError, UnsupportedError):
                continue
            found = made
        return found

    def _refuses_bare(self) -> bool:
        """Return whether a call must bring the mask parts that the variant cannot do without."""
        if not self.target.promises.needs:
            return False
        bare = torch.zeros(1, 2, self.config.embed_dim, dtype=self.dtype, device=self.device)
        width = getattr(self.config, "context_dim", None)
        further = {} if width is None else {"context": bare.new_zeros(1, 2, width)}
        try:
            self.layer(bare, **further)
        except UnsupportedError:
            return True
        return False

    @property
    def is_defined(self) -> bool:
        """Whether its definition is the truth; its own float64 is not."""
        return False

    @property
    def config(self) -> LayerConfig:
        """Of the layer."""
        found: LayerConfig = self.layer.config
        return found

    def draw(
        self, label: str, *, batch: int = 2, length: int = 33, mask: Mask | None = None
    ) -> Call:
        """Return a call of L tokens; see `Subject.draw`."""
        x = self.normal(label, batch, length, self.config.embed_dim)
        mask = self.mask(Sizes(batch, 1, length, length)) if mask is None else mask
        return Call({"x": x}, mask)

    def causal(self, call: Call) -> Call:
        call = super().causal(call)
        return call.masked(call.mask & attnkit.causal())

    def function(self, call: Call) -> Function:
        return self.called(self.layer, call)

    def called(self, layer: Any, call: Call) -> Function:
        """Return what a layer gives of a call's tensors, and of weights in place of its own."""
        mask = call.mask

        def function(tensors: Mapping[str, Tensor]) -> Tensor:
            given = dict(tensors)
            x, further = given.pop("x"), {n: given.pop(n) for n in ("context",) if n in given}
            # what else is given stands in for weights
            y: Tensor = functional_call(layer, given, (x,), {"mask": mask, **further})
            return y

        return function

    def __call__(self, call: Call) -> Tensor:
        self.calls.append(call)
        self.last = f"layer({call.describe()}) with {self.config!r}"
        out: Tensor = self.watch.run(call, self.function(call))
        return out

    def begin(self, batch: int) -> State:
        """Return the state before the first token."""
        state: State = self.layer.init_state(batch)
        return state

    def advance(self, call: Call, state: State, hidden: Mask | None = None) -> tuple[Tensor, State]:
        """Return the outputs of further tokens and the state after them.

        The call's own mask, which is of these alone, is left out; what is ``hidden`` is so over all
        tokens so far, in addition to the plainest mask.
        """
        x = call.tensors["x"]
        sizes = Sizes(len(x), 1, x.shape[1], state.tokens + x.shape[1])
        mask = self.mask(sizes, wide=GROWING)
        call = call.masked(mask if hidden is None else mask & hidden)
        self.last = f"layer({call.describe()}, state=<{state.tokens} tokens>) with {self.config!r}"
        y, state = self.watch.run(
            call, lambda given: self.layer(given["x"], mask=call.mask, state=state)
        )
        return y, state

    def pieces(
        self,
        call: Call,
        lengths: tuple[int, ...],
        hidden: Callable[[int], Mask | None] = lambda _: None,
    ) -> Tensor:
        """Return the outputs of consecutive chunks, joined; the state is handed on.

        What is ``hidden`` is so over so many tokens; see `advance`.
        """
        outputs, start, state = [], 0, self.begin(call.tensors["x"].shape[0])
        for length in lengths:
            stop = start + length
            out, state = self.advance(call.tokens(start, stop), state, hidden(stop))
            outputs.append(out)
            start = stop
        return torch.cat(outputs, -2)

    @property
    def widest(self) -> torch.dtype:
        """The widest dtype that is promised."""
        return dtype_of(min(self.target.variant.promises.dtypes, key=ALL_DTYPES.index))

    def twin(self) -> Any:
        """Return the layer with the same weights in the widest dtype that is promised.

        What it gives is only compared with what the layer itself gives otherwise, never taken
        for the truth. A variant without float64 has its errors measured by its float32.
        """
        twin = build(self.target, self.widest, **{**self.given, "implementation": "auto"})
        twin.load_state_dict(self.layer.state_dict())
        return twin

    def definition(self, call: Call, rules: Any = None) -> Definition:
        twin = self.twin()
        dtype = next(twin.parameters()).dtype
        called = self.called(twin, call)

        def function(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {"out": called({name: t.to(dtype) for name, t in tensors.items()}).double()}

        return function

    def weights(self) -> dict[str, Tensor]:
        return dict(self.layer.named_parameters())

    # what its variant says that it should give

    def varied(self) -> Self:
        """Move what layers begin with, norms of 1 and biases of 0 say: each shows in an output."""
        draw = self.random("weights")
        with torch.no_grad():
            for weight in self.weights().values():
                if weight.dim() < 2:
                    weight.add_(normal(draw, *weight.shape).to(weight))
        return self

    def judged(self, call: Call, grads: Grads = None) -> Bounds:
        """Return bounds by the variant's definition of its layer; padding may give anything."""
        named = self.target.variant.layer_definition
        assert named is not None
        definition, config, mask = load(named), self.config, call.mask
        prefix = "module." if is_foreign(self.target.variant) else ""
        weights = self.weights()
        buffers = {name: each.double() for name, each in self.layer.named_buffers()}

        def function(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            given = {n: t for n, t in tensors.items() if n in call.tensors}
            held = {n.removeprefix(prefix): tensors[n] for n in weights}
            held |= {n.removeprefix(prefix): each for n, each in buffers.items()}
            return {"out": definition(held, given.pop("x"), config=config, mask=mask, **given)}

        found = probed(
            function,
            {**call.tensors, **weights},
            self.dtype,
            grads=grads,
            # what is beyond the gate is measured again with more
            probes=1,
            gate=units.layer_gate(self.dtype),
        )
        return {**found, "out": found["out"].only(self.real(call)[..., None])}

    def real(self, call: Call) -> Tensor:
        """Return which tokens no padding hides, (B, L)."""
        x = call.tensors["x"]
        # a mask of a context says nothing about x
        mask = attnkit.full() if "context" in call.tensors else call.mask
        return oracle.real_tokens(mask, len(x), x.shape[1], x.device)

    def written(
        self, name: str, variant: Written, given: list[str], *, output: str = "out"
    ) -> tuple[str, list[str]]:
        return f"{name} = layer", ["x", *given]


class RecurrenceLayer(LayerSubject):
    """The layer of a recurrence, which sees no later token whatever its mask."""

    def causal(self, call: Call) -> Call:
        return Subject.causal(self, call)


class MixerLayer(LayerSubject):
    """The layer of a mixer; one of others, which may be called causal."""

    def plain_masks(self, sizes: Sizes) -> dict[str, Mask]:
        found = super().plain_masks(sizes)
        if self.promises.causal and self.promises.bidirectional:
            found["causal"] = found[""] & attnkit.causal()
        return found
