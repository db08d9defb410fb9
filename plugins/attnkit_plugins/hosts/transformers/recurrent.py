"""A recurrence in a swapped layer: its input, its padding, and its state in the model's cache.

A layer hands its attention function neither its input nor its cache, so a hook before the layer
notes both. In a cache, the layer's own entry is replaced by a `StateLayer`: of constant size, it
hands the new keys and values back instead of all, and follows reorderings of the batch.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from threading import local
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin, EncoderDecoderCache

from attnkit.errors import StateError, UnsupportedError
from attnkit.hosts.mounts import submodule
from attnkit.masks.constructors import Mask, Sizes, causal
from attnkit.masks.recognition import lift_causal
from attnkit.masks.tensors import Unread
from attnkit_plugins.hosts.transformers import dispatch
from attnkit_plugins.hosts.transformers.bond import MARK, Bound

if TYPE_CHECKING:
    from attnkit.hosts.protocol import Call, Memory, Mixer, StateMixer
    from attnkit.state import RecurrentState

CHILD = "attnkit"
"""Name under which a layer holds the module of the recurrence that stands in it."""


class StateLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers is untyped
    """A layer of a cache that holds a recurrent state.

    It holds no keys, so that only the variant whose state it is can go on with it: a swapped layer
    announces every call, and what calls without that is refused.

    Attributes:
        index: Which layer of the cache it is.
        state: None before the first token.
        room: How many tokens a static cache has room for; None for any number.
        variant: Name of the variant whose state it is.
        announced: Whether a swapped layer has begun a call that has not reached `update` yet.
    """

    is_sliding = False
    is_croppable = False
    supports_early_init = False

    def __init__(self, index: int, variant: str, room: int | None = None) -> None:
        super().__init__()
        self.index = index
        self.variant = variant
        self.announced = False
        self.room = room
        # models leave masks out for caches that say no, and the static layers beside need them
        self.is_compileable = room is not None
        self.state: RecurrentState | None = None
        self.device: torch.device | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.device = key_states.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **rest: Any
    ) -> tuple[Tensor, Tensor]:
        """Return what came in; the state takes it in where the layer attends.

        Raises:
            StateError: No layer is there to take it in: its swap was restored, or another one
                stands on top.
        """
        if not self.announced:
            raise StateError(
                f"{self._held()}, which does not stand in the model's layer; start with a new "
                f"cache, or swap {self.variant!r} in again"
            )
        self.announced = False
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return key_states, value_states

    def announce(self, variant: str) -> None:
        """Let a layer begin a call.

        Raises:
            StateError: The state is another variant's.
        """
        if self.state is not None and self.variant != variant:
            raise StateError(
                f"{self._held()}, in the model's layer stands {variant!r}; start with a new "
                f"cache, or swap {self.variant!r} in again"
            )
        self.variant, self.announced = variant, True

    def get_seq_length(self) -> int:
        return 0 if self.state is None else self.state.tokens

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        # masks are made once for all layers, some of which may hold keys
        return self.room or self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return self.room or -1

    def reset(self) -> None:
        self.state = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.state is not None:
            self.state = self.state.reorder(indices.to(self.state.memory.device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.state is not None:
            count = torch.arange(self.state.batch_size, device=self.state.memory.device)
            self.state = self.state.reorder(count.repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove and self.state is not None:
            raise StateError(
                f"cannot take {abs(tokens_to_remove)} tokens out of a recurrent state: its sums "
                "cannot be unwound; generate without assistant model or prompt lookup"
            )

    def offload(self) -> None:
        self._move(torch.device("cpu"))

    def prefetch(self) -> None:
        self._move(self.device)

    def _held(self) -> str:
        """Begin a refusal."""
        tokens = self.get_seq_length()
        return (
            f"past_key_values: layer {self.index} of the cache holds {tokens} tokens as the state "
            f"of {self.variant!r}"
        )

    def _move(self, device: torch.device | None) -> None:
        if self.state is not None and device is not None:
            memory, inputs = self.state.memory.to(device), self.state.inputs.to(device)
            self.state = type(self.state)(memory, self.state.tokens, inputs)


@dataclass
class Beside:
    """Where a trial keeps its state while the model's cache keeps keys and values."""

    state: RecurrentState | None = None


class Watch:
    """The hook before a swapped layer; notes what its attention function is not told.

    Threads that run one model at a time each have notes of their own.

    Attributes:
        variant: Name of the variant that stands in the layer.
        replaces: Put a `StateLayer` into the cache; else keep the state beside it.
    """

    def __init__(self, variant: str, replaces: bool) -> None:
        self.variant = variant
        self.replaces = replaces
        self._noted = local()

    def __reduce__(self) -> tuple[object, ...]:
        """Copy and pickle without notes: they belong to a call."""
        return Watch, (self.variant, self.replaces)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        """Note the input and the place in the cache, unless another swap stands on top."""
        mixer = module.__dict__[MARK].mixer
        if not (isinstance(mixer, Entering) and mixer.watch is self):
            return
        x = args[0] if args else keywords.get("hidden_states")
        if not isinstance(x, torch.Tensor):
            raise UnsupportedError(
                f"hidden_states: {type(module).__name__} was called without it, a recurrence "
                "needs the layer's input"
            )
        caches = [each for each in (*args, *keywords.values()) if isinstance(each, Cache)]
        self._noted.x = x
        self._noted.memory = self._memory(module, caches[0]) if caches else None

    def taken(self) -> tuple[Tensor, Memory | None]:
        """Return the layer's input and where its state is kept; nothing of a call outlives it."""
        x, memory = self._noted.x, self._noted.memory
        self._noted.x = self._noted.memory = None
        return x, memory

    def _memory(self, module: nn.Module, cache: Any) -> Memory:
        cache = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
        index: Any = module.layer_idx
        while len(cache.layers) <= index:
            cache.layers.append(cache.layer_class_to_replicate())
        held: Any = cache.layers[index]
        if not self.replaces:
            kept: Memory = held.__dict__.setdefault("_attnkit_beside", Beside())
            return kept
        if isinstance(held, StateLayer):
            held.announce(self.variant)
            return held
        if int(held.get_seq_length()):
            raise StateError(
                f"past_key_values: layer {index} of the cache holds {int(held.get_seq_length())} "
                "tokens as keys and values, from before the swap; start with a new cache"
            )
        room = held.get_max_length()
        cache.layers[index] = new = StateLayer(index, self.variant, None if room < 0 else room)
        new.announce(self.variant)
        return new


@dataclass
class Arrived:
    """See `attnkit.hosts.protocol.Span`."""

    request: dispatch.Arrived
    x: Tensor
    memory: Memory | None

    @property
    def query(self) -> Tensor:
        return self.request.query

    @property
    def key(self) -> Tensor:
        return self.request.key

    @property
    def value(self) -> Tensor:
        return self.request.value

    @property
    def scale(self) -> float:
        given = self.request.keywords.get("scaling")
        return float(self.query.shape[-1] ** -0.5 if given is None else given)

    def call(self) -> Call:
        return self.request.call()

    def own(self, query: Tensor, key: Tensor, value: Tensor, samples: slice) -> Tensor:
        return self.request.own(query, key, value, samples)

    def tokens(self, seen: int) -> Mask:
        batch, heads, length, _ = self.query.shape
        self._check()
        given = self.request.attention_mask
        if given is None:
            return causal()
        if given.dim() != 4:
            raise UnsupportedError(
                f"attention_mask must have 4 dimensions here, got {tuple(given.shape)}; the "
                "model's own implementation must be 'sdpa' or 'eager'"
            )
        dispatch.check_mask(self.request.module, given)
        compiling = torch.compiler.is_compiling()
        if given.dtype != torch.bool:
            hidden = given <= torch.finfo(given.dtype).min / 2
            adds, told = given.masked_fill(hidden, 0.0).any(), "attention_mask: adds to logits"
            if compiling:
                torch._assert_async(~adds, f"{told}, a recurrence has none")  # pyright: ignore[reportPrivateImportUsage]  # torch has no public one
            elif bool(adds):
                raise UnsupportedError(f"{told}, a recurrence has none")
            given = ~hidden
        # a static cache's mask has a column for every token that it has room for
        given = given[..., : seen + length]
        if compiling:
            return Unread(given)
        return lift_causal(given, Sizes(batch, heads, length, seen + length))

    def _check(self) -> None:
        """Refuse arguments that a recurrence cannot honour."""
        given = self.request.keywords
        dispatch.check_keywords(type(self.request.module).__name__, given)
        for name in ("sliding_window", "softcap", "sinks", "s_aux", "position_bias"):
            if given.get(name) is not None:
                raise UnsupportedError(f"{name}: a recurrence has no logits and no window")
        if given.get("dropout"):
            raise UnsupportedError(
                f"dropout: {given['dropout']} of the probabilities, a recurrence has none; set the "
                "layer's dropout to 0"
            )
        if given.get("is_causal") is False:
            raise UnsupportedError("is_causal: False asks for later keys, a recurrence has none")


@dataclass
class Entering:
    """A mixer that tells another one what the hook noted."""

    mixer: Mixer
    watch: Watch

    def __call__(self, request: dispatch.Arrived) -> Tensor:
        x, memory = self.watch.taken()
        return self.mixer(Arrived(request, x, memory))


@dataclass
class Attached:
    """See `attnkit.hosts.protocol.Attachment`.

    Attributes:
        attachment: Of the mixer.
        layer: The layer.
        added: The module of the recurrence, if it has one.
        steps: How to undo what was done, all of it even if one of them raises.
    """

    attachment: Bound
    layer: nn.Module
    added: nn.Module | None
    steps: ExitStack

    def blocked(self) -> str | None:
        if self.added is not None and self.layer._modules.get(CHILD) is not self.added:
            return self.attachment.blocked() or (
                f"{self.attachment.path}.{CHILD} was replaced or taken out by other means after "
                "the swap; put back the module that the swap had put there"
            )
        return self.attachment.blocked()

    def undo(self) -> None:
        self.steps.close()


def attach(model: nn.Module, path: str, mixer: StateMixer, label: str) -> Attached:
    """Put a recurrence at a layer, with its parameters and its hook, or leave it as it was."""
    layer, added = submodule(model, path), mixer.module
    watch = Watch(label, replaces=mixer.replaces)
    with ExitStack() as steps:
        attachment = dispatch.attach(model, path, Entering(mixer, watch), label)
        steps.callback(attachment.undo)
        steps.callback(layer.register_forward_pre_hook(watch, with_kwargs=True).remove)
        if added is not None:
            steps.callback(_hold, layer, layer._modules.get(CHILD))
            _hold(layer, added)
        return Attached(attachment, layer, added, steps.pop_all())


def _hold(layer: nn.Module, module: nn.Module | None) -> None:
    """Let a layer hold a module as its `CHILD`, or none."""
    layer._modules.pop(CHILD, None)
    if module is not None:
        layer._modules[CHILD] = module
