"""What a plugin declares: variants, their implementations, their layers. Start here.

Shape letters, everywhere:

    B    batch                       E    width of a query or key head
    H    query heads                 Ev   width of a value head
    Hkv  key/value heads             D    width of the model
    L    query length                G    groups of a recurrence (heads of query and key)
    S    key length                  N    number of blocks or chunks

A variant's module holds its declaration and imports no torch: listing variants must stay cheap.
What needs torch is named as ``"package.module:attribute"`` and imported on first use.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, overload

from pydantic import Field

from attnkit.errors import ArgumentError
from attnkit.frozen import Frozen

if TYPE_CHECKING:
    from torch import Tensor

    from attnkit.masks.constructors import Mask
    from attnkit.placements import Placement
    from attnkit.promises import Promises, Relation
    from attnkit.state import State


class LayerConfig(Frozen):
    """Base of every layer's configuration; a variant adds its own fields."""

    embed_dim: int = Field(gt=0, description="D, width of the layer's input and output")
    implementation: str = Field(default="auto", description="implementation to run, or 'auto'")


class Options(Frozen):
    """Base of a recurrence's options, those that change its mathematics or its chunking.

    A variant may prepare the inputs of the recurrence and finish its outputs; its
    implementations then compute the plain recurrence in between.
    """

    def features(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what goes into the recurrence: (B, G, L, E'), (B, G, L, E'), (B, H, L, Ew)."""
        return query, key, value

    def finish(self, out: Tensor) -> Tensor:
        """Turn outputs of the recurrence, (B, H, L, Ew), into the variant's, (B, H, L, Ev)."""
        return out

    def state_shape(self, head_dim: int, value_head_dim: int) -> tuple[int, int]:
        """Return (E', Ew), the last two sizes of the state."""
        return head_dim, value_head_dim


class NoOptions(Options):
    """For variants that take no options."""


@dataclass(frozen=True, kw_only=True)
class Implementation:
    """One way to compute a variant, on some devices, dtypes and shapes.

    Attributes:
        name: ``reference``, ``sdpa``, ``tiled``, ``chunked`` ...
        function: A `SoftmaxFunction` or `RecurrenceFunction`, by the family; usually
            ``"package.module:function"``, imported on first use.
        summary: One line: how it computes.
        promises: What it claims; a call that needs more is refused with every reason.
        cost: Estimated seconds for a problem of its family (`attnkit.problem`), from
            measurements; ``auto`` takes the cheapest.
        refuses: The reason it cannot take this problem, or None; for what promises cannot say.
        packages: Import names it needs beside torch.
    """

    name: str
    function: str | Callable[..., Any]
    summary: str
    promises: Promises
    cost: Callable[[Any], float]
    refuses: Callable[[Any], str | None] = field(default=lambda _: None)
    packages: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A mathematical operation with a name, a source and an owner.

    Attributes:
        name: The name it is asked by; third parties prefix their own (``acme_window``).
        family: Name of its `attnkit.families.Family`, the signature of its operation; ``mixer``
            has only a layer.
        summary: One line: what it computes.
        source: Paper and equation.
        relation: To full softmax attention with the same inputs and mask.
        promises: What at least one implementation, or the layer, honours.
        config: Configuration of the layer.
        layer: An ``nn.Module`` class, see `Layer`; usually ``"package.module:Class"``. It is
            called as ``layer(config, variant=variant, device=device, dtype=dtype)``.
        layer_definition: The whole layer as a plain function in float64, a `LayerDefinition` that
            shares no code with it; usually ``"package.module:function"``. The conformance suite
            judges the layer's mathematics by it; without one nobody does, and reports say so.
        implementations: The first one is the float64 reference.
        options: Options of a recurrence's operation.
        default_options: Those of a call that gives none; None where one is required.
        placement: How it takes the place of a part of an existing model; None if it cannot.
            A softmax variant needs none.
    """

    name: str
    family: str
    summary: str
    source: str
    relation: Relation
    promises: Promises
    config: type[LayerConfig]
    layer: str | Callable[..., Any]
    layer_definition: str | Callable[..., Tensor] | None = None
    implementations: tuple[Implementation, ...] = ()
    options: type[Options] = NoOptions
    placement: Placement | None = None
    default_options: Options | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Make the default options, once: ``torch.compile`` cannot trace pydantic."""
        made = None
        # a wrong declaration is the registry's to refuse, with the owner's name
        declared: object = self.options
        if isinstance(declared, type) and issubclass(declared, Options):
            required = any(each.is_required() for each in declared.model_fields.values())
            made = None if required else declared()
        object.__setattr__(self, "default_options", made)

    def __deepcopy__(self, memo: dict[int, object]) -> Variant:
        """Return itself: a copied layer runs the same variant, registered or not."""
        return self

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle as its name: what it stands for lives in the registry."""
        return load("attnkit.registry.registry:unpickled"), (self.name,)


class SoftmaxFunction(Protocol):
    """What an implementation of a softmax variant computes; arguments are already checked.

        out[i] = sum_j softmax_j(cap(scale * query[i] . key[j]) + bias[i, j]) * value[j]

    over the keys that ``mask`` allows; query head h reads key/value head h // (H // Hkv).
    A row that sees no key is zero and has zero gradients.
    """

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        mask: Mask,
        bias: Tensor | None,
        scale: float,
        softcap: float | None,
        sinks: Tensor | None,
        dropout_p: float,
    ) -> Tensor:
        """Attend.

        Args:
            query: (B, H, L, E).
            key: (B, Hkv, S, E).
            value: (B, Hkv, S, Ev).
            mask: Who may look at what.
            bias: Added to the scaled and capped logits: (B, H, L, S), each size that or 1.
            scale: Multiplies the logits, dimensionless.
            softcap: ``cap(x) = softcap * tanh(x / softcap)``; None for no cap.
            sinks: (H,), one extra logit per head, in the denominator only.
            dropout_p: Share of probabilities to drop; 0.0 outside training.

        Returns:
            (B, H, L, Ev) in the dtype of ``query``.
        """
        ...


class SoftmaxRules(TypedDict):
    """Keywords of a `SoftmaxFunction`, for one written with ``**rules: Unpack[SoftmaxRules]``."""

    mask: Mask
    scale: float
    bias: Tensor | None
    sinks: Tensor | None
    softcap: float | None
    dropout_p: float


class RecurrenceFunction(Protocol):
    """What an implementation of a recurrence computes; arguments are already checked.

        S_t = exp(g_t) S_{t-1} + k_t v~_t^T,    o_t = scale * S_t^T q_t

    with v~_t = v_t, or v~_t = beta_t (v_t - (exp(g_t) S_{t-1})^T k_t) where beta is given.
    Head h of ``value`` reads group h // (H // G) of ``query`` and ``key``.
    """

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        log_decay: Tensor | None,
        beta: Tensor | None,
        scale: float,
        initial_state: Tensor,
        options: Any,
    ) -> tuple[Tensor, Tensor]:
        """Run the recurrence over L tokens.

        Args:
            query: (B, G, L, E).
            key: (B, G, L, E).
            value: (B, H, L, Ev).
            log_decay: g, natural logarithm, <= 0; (B, H, L), or (B, H, L, E) per key channel.
            beta: (B, H, L), strength of the delta rule.
            scale: Multiplies the output, dimensionless.
            initial_state: (B, H, E, Ev), float32 or float64; zeros to start afresh.
            options: The variant's ``options``.

        Returns:
            The outputs (B, H, L, Ev) in the dtype of ``value``, and the final state, shaped and
            typed as ``initial_state``.
        """
        ...


class RecurrenceRules(TypedDict):
    """Keywords of a `RecurrenceFunction`, likewise."""

    scale: float
    log_decay: Tensor | None
    beta: Tensor | None
    options: Any
    initial_state: Tensor


class FeedforwardFunction(Protocol):
    """What an implementation of a mixture of experts computes, for a routing already decided."""

    def __call__(self, x: Tensor, experts: Tensor, gates: Tensor, *, weights: Any) -> Tensor:
        """Sum the chosen experts' outputs, each times its gate.

        Args:
            x: (T, D), tokens of all samples.
            experts: (T, k), int64, -1 for a slot that counts for nothing.
            gates: (T, k), float32, or float64 where x is.
            weights: The variant's own record of the experts' weights.

        Returns:
            (T, D) in the dtype of ``x``; a token without experts is 0.
        """
        ...


class Layer(Protocol):
    """The `torch.nn.Module` every variant builds: (B, L, D) in, (B, L, D) out."""

    config: LayerConfig

    @overload
    def __call__(self, x: Tensor, *, mask: Mask = ..., state: None = None) -> Tensor: ...
    @overload
    def __call__(self, x: Tensor, *, mask: Mask = ..., state: State) -> tuple[Tensor, State]: ...
    def __call__(
        self, x: Tensor, *, mask: Mask = ..., state: State | None = None
    ) -> Tensor | tuple[Tensor, State]:
        """Mix the tokens of each sample.

        What a class takes beside these, a type checker knows once it is told the class.

        Args:
            x: (B, L, D).
            mask: Of all tokens, those of ``state`` included; joins the layer's own.
            state: What came before. Without it, ``x`` is the whole sequence.

        Returns:
            y, (B, L, D); with ``state``, the pair of y and the state after ``x``.
        """
        ...

    def init_state(self, batch_size: int) -> State:
        """Return the state before the first token."""
        ...


class LayerDefinition(Protocol):
    """What a variant's layer computes, written to be checked by eye; never on the way of a call.

        def averaging(weights, x, *, config, mask):
            gate = torch.tanh(x @ weights["gate.weight"].mT + weights["gate.bias"])
            ...

    It is told no state: in chunks and steps, a layer gives what this gives of all tokens at once.
    """

    def __call__(self, weights: Any, x: Tensor, *, config: Any, mask: Mask) -> Tensor:
        """Mix the tokens of each sample.

        Args:
            weights: The layer's parameters and buffers by name, as ``named_parameters`` gives
                them; in float64, after they were rounded to the layer's dtype.
            x: (B, L, D), float64.
            config: Of the layer.
            mask: As of `Layer`: of all tokens; joins the layer's own.

        Returns:
            (B, L, D), float64; what padded tokens get may be anything. Where the configuration
            has a ``context_dim`` that is set, there is a further keyword, ``context`` (B, S, ·).
        """
        ...


def load(reference: str | Callable[..., Any]) -> Any:
    """Import what ``"package.module:attribute"`` names; return anything else as it is."""
    if not isinstance(reference, str):
        return reference
    module, _, attribute = reference.partition(":")
    if not attribute:
        raise ArgumentError(f"expected 'package.module:attribute', got {reference!r}")
    return getattr(importlib.import_module(module), attribute)
