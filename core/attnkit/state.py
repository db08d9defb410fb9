"""What a layer remembers between calls, as values.

A state never changes after it was handed out: a layer takes one and returns the next. So a state
can be kept to return to, given to two continuations, or sent through `State.reorder`, and none
of these disturbs another. A KV cache still appends in amortised O(1): see `KVCache.append`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from attnkit.errors import StateError


class State(Protocol):
    """What every state can do."""

    @property
    def tokens(self) -> int:
        """How many tokens this state has seen."""
        ...

    @property
    def batch_size(self) -> int:
        """B."""
        ...

    def nbytes(self) -> int:
        """Bytes of the tensors it holds, room for growth included."""
        ...

    def reorder(self, index: Tensor) -> Self:
        """Return the state whose sample b is this one's sample ``index[b]`` (beam search).

        Args:
            index: (B',) int64; B' may differ from B, samples may repeat.
        """
        ...

    def truncate(self, tokens: int) -> Self:
        """Return the state as it was after ``tokens`` tokens (speculative decoding).

        Raises:
            StateError: More tokens than were seen, or the past is no longer held.
        """
        ...


class _Buffer:
    """Storage that several cache values may share; ``used`` counts the places written to."""

    def __init__(self, key: Tensor, value: Tensor, used: int) -> None:
        self.key, self.value, self.used = key, value, used

    def takes(self, start: int, stop: int) -> bool:
        """Say whether the places from ``start`` to ``stop`` are there, free and writable now."""
        # what was made under inference_mode cannot be written to outside of it
        writable = torch.is_inference_mode_enabled() or not self.key.is_inference()
        return writable and self.used == start and stop <= self.key.shape[2]


class KVCache:
    """All keys and values seen so far.

    Attributes:
        key: (B, Hkv, S, E), a view of the S tokens held.
        value: (B, Hkv, S, Ev).
    """

    def __init__(self, key: Tensor, value: Tensor, *, _buffer: _Buffer | None = None) -> None:
        self.key = key
        self.value = value
        self._buffer = _buffer

    @classmethod
    def empty(
        cls,
        batch_size: int,
        num_kv_heads: int,
        head_dim: int,
        value_head_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> Self:
        """Return a cache of no tokens."""
        shape = (batch_size, num_kv_heads, 0)
        return cls(
            torch.empty(*shape, head_dim, dtype=dtype, device=device),
            torch.empty(*shape, value_head_dim, dtype=dtype, device=device),
        )

    @property
    def tokens(self) -> int:
        return self.key.shape[2]

    @property
    def batch_size(self) -> int:
        return self.key.shape[0]

    def begun(self, like: Tensor) -> Self:
        """Return the state for tokens of this kind: one of none takes their dtype and device."""
        if self.tokens:
            return self
        return type(self)(like.new_empty(self.key.shape), like.new_empty(self.value.shape))

    def append(self, key: Tensor, value: Tensor) -> Self:
        """Return the cache with ``key`` (B, Hkv, L, E) and ``value`` (B, Hkv, L, Ev) added.

        Where nobody has written behind this value's last token, the new ones go there, without
        copying the old. A second continuation of the same state finds that place taken and
        copies. Where gradients are enabled and under ``torch.compile`` it always copies: a graph
        may hold the old.

        Raises:
            StateError: ``key`` or ``value`` has other sizes than those held, or a wider dtype.
        """
        _check_fits(self, key, value)
        if torch.compiler.is_compiling() or torch.is_grad_enabled():
            return type(self)(
                torch.cat((self.key, key), dim=2), torch.cat((self.value, value), dim=2)
            )
        start, stop = self.tokens, self.tokens + key.shape[2]
        buffer = self._buffer
        if buffer is None or not buffer.takes(start, stop):
            buffer = _grown(self, room=max(2 * stop, 64))
        buffer.key[:, :, start:stop] = key
        buffer.value[:, :, start:stop] = value
        buffer.used = stop
        return type(self)(buffer.key[:, :, :stop], buffer.value[:, :, :stop], _buffer=buffer)

    def nbytes(self) -> int:
        held = self._buffer or self
        return held.key.nbytes + held.value.nbytes

    def reorder(self, index: Tensor) -> Self:
        return type(self)(self.key.index_select(0, index), self.value.index_select(0, index))

    def truncate(self, tokens: int) -> Self:
        _check_cut(tokens, self.tokens, oldest=0)
        return type(self)(self.key[:, :, :tokens], self.value[:, :, :tokens], _buffer=self._buffer)


class WindowCache:
    """The last ``size`` keys and values, all that a sliding window can still see.

    Attributes:
        key: (B, Hkv, S', E) with S' <= size, oldest first.
        value: (B, Hkv, S', Ev).
        size: How many tokens are kept: the window less one, plus what `truncate` may give back.
        needed: How many of them the next token sees: the window less one.
    """

    def __init__(
        self, key: Tensor, value: Tensor, *, size: int, needed: int, tokens: int = 0
    ) -> None:
        self.key = key
        self.value = value
        self.size = size
        self.needed = needed
        self._tokens = tokens

    @property
    def tokens(self) -> int:
        return self._tokens

    @property
    def batch_size(self) -> int:
        return self.key.shape[0]

    def begun(self, like: Tensor) -> Self:
        """See `KVCache.begun`."""
        if self.tokens:
            return self
        key, value = like.new_empty(self.key.shape), like.new_empty(self.value.shape)
        return self._with(key, value, tokens=0)

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Self]:
        """Return all keys (B, Hkv, S' + L, E) and values the new tokens may see, and the next."""
        _check_fits(self, key, value)
        keys = torch.cat((self.key, key), dim=2)  # (B, Hkv, S' + L, E)
        values = torch.cat((self.value, value), dim=2)  # (B, Hkv, S' + L, Ev)
        start = max(0, keys.shape[2] - self.size)
        # clone: a view would hold on to everything the window has passed
        kept = (keys[:, :, start:].clone(), values[:, :, start:].clone())
        tokens = self.tokens + key.shape[2]
        return keys, values, self._with(*kept, tokens=tokens)

    def nbytes(self) -> int:
        return self.key.nbytes + self.value.nbytes

    def reorder(self, index: Tensor) -> Self:
        key, value = self.key.index_select(0, index), self.value.index_select(0, index)
        return self._with(key, value, tokens=self.tokens)

    def truncate(self, tokens: int) -> Self:
        held = self.key.shape[2]
        # complete history, or enough of it left for the next token's window
        oldest = 0 if held == self.tokens else self.tokens - held + self.needed
        _check_cut(tokens, self.tokens, oldest=oldest)
        stop = held - (self.tokens - tokens)
        return self._with(self.key[:, :, :stop], self.value[:, :, :stop], tokens=tokens)

    def _with(self, key: Tensor, value: Tensor, *, tokens: int) -> Self:
        return type(self)(key, value, size=self.size, needed=self.needed, tokens=tokens)


@dataclass(frozen=True)
class RecurrentState:
    """The sums of a recurrence, and the last inputs of a short convolution if there is one.

    Attributes:
        memory: (B, H, E, Ev), float32 or float64.
        tokens: How many tokens it has seen.
        inputs: (B, C, K - 1), the last inputs of a convolution of width K over C channels;
            C = 0 where there is none.
    """

    memory: Tensor
    tokens: int
    inputs: Tensor

    @property
    def batch_size(self) -> int:
        return self.memory.shape[0]

    def nbytes(self) -> int:
        return self.memory.nbytes + self.inputs.nbytes

    def reorder(self, index: Tensor) -> Self:
        return type(self)(
            self.memory.index_select(0, index), self.tokens, self.inputs.index_select(0, index)
        )

    def truncate(self, tokens: int) -> Self:
        """Return this state if nothing is to be cut; sums cannot be unwound."""
        _check_cut(tokens, self.tokens, oldest=self.tokens)
        return self


@dataclass(frozen=True)
class Stateless:
    """The state of a layer whose tokens do not see each other."""

    batch_size: int
    tokens: int = 0

    def nbytes(self) -> int:
        return 0

    def reorder(self, index: Tensor) -> Self:
        return type(self)(index.shape[0], self.tokens)

    def truncate(self, tokens: int) -> Self:
        _check_cut(tokens, self.tokens, oldest=0)
        return type(self)(self.batch_size, tokens)


def _grown(state: KVCache, room: int) -> _Buffer:
    """Copy into storage with room to grow; the unwritten tail is zero, never uninitialised."""

    def copy(old: Tensor) -> Tensor:
        new = old.new_zeros(*old.shape[:2], room, old.shape[3])
        new[:, :, : old.shape[2]] = old
        return new

    return _Buffer(copy(state.key), copy(state.value), state.tokens)


def _check_fits(state: KVCache | WindowCache, key: Tensor, value: Tensor) -> None:
    """Check what writing into a buffer would broadcast or round in silence."""
    if key.shape[0] != state.batch_size:
        raise StateError(
            f"state holds {state.batch_size} samples, the call has {key.shape[0]}; "
            "start with init_state(batch_size), or pick samples with state.reorder(index)"
        )
    for name, held, given in (("key", state.key, key), ("value", state.value, value)):
        if (held.shape[1], held.shape[3]) != (given.shape[1], given.shape[3]):
            raise StateError(
                f"state holds a {name} of {held.shape[1]} heads of width {held.shape[3]}, the call "
                f"has {given.shape[1]} of width {given.shape[3]}; start with init_state(batch_size)"
            )
        if torch.promote_types(held.dtype, given.dtype) != held.dtype:
            raise StateError(
                f"state holds a {name} of {held.dtype}, the call has {given.dtype}; "
                "start with init_state(batch_size) of a layer of that dtype"
            )
    if key.shape[2] != value.shape[2]:
        raise StateError(
            f"key and value must be of equal length, got {key.shape[2]} and {value.shape[2]} tokens"
        )


def _check_cut(tokens: int, seen: int, oldest: int) -> None:
    if not oldest <= tokens <= seen:
        raise StateError(
            f"cannot truncate to {tokens} tokens: {seen} seen, the past is held back to {oldest}; "
            "keep the earlier state instead, states are values"
        )
