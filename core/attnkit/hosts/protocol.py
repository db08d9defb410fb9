"""What a host must implement, and what it may: the contract of an adapter, whole.

A *host* is a library whose modules can receive a variant (transformers, timm, torch.nn ...). A
plugin offers its adapter, a `Host`, through the hook `attnkit_hosts`; `docs/how-to/write-a-host.md`
builds one. At run time each call of a site reaches the variant's `Mixer` as one `Request`, `Span`
or `Passage`.

    must                Host: sites, attach, sample, run
    may                 Opener: open what the library saved
                        Prober: vary a sample where a model may not look
                        FeedforwardHost: hand out a feed-forward layer's weights
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import torch
    from torch import Tensor, nn

    from attnkit.hosts.parts import Routing, Weights
    from attnkit.masks.constructors import Mask
    from attnkit.sites import Site
    from attnkit.state import RecurrentState

    Inputs = Mapping[str, object]
    Outputs = Mapping[str, Tensor]
    Rows = Callable[[str, Tensor], Tensor | None]


# not frozen: that alone would cost a microsecond in every layer, at every token
@dataclass(slots=True)
class Call:
    """The arguments of `attnkit.attention` that one call of a site amounts to; never changed.

    Attributes:
        aligned: Whether query i is known to stand at key i + S - L, as masks by position presume;
            not where the keys end in unwritten places of a cache.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Mask
    bias: Tensor | None
    scale: float | None
    softcap: float | None
    sinks: Tensor | None
    dropout_p: float
    aligned: bool = True

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of `attnkit.attention`."""
        names = (each.name for each in fields(self) if each.name != "aligned")
        return {name: getattr(self, name) for name in names}


class Request(Protocol):
    """One call of a site, as its host received it."""

    @property
    def query(self) -> Tensor: ...
    @property
    def key(self) -> Tensor: ...
    @property
    def value(self) -> Tensor: ...

    def call(self) -> Call:
        """Translate the host's arguments.

        Raises:
            UnsupportedError: An argument has no translation; it is named.
        """
        ...

    def own(self, query: Tensor, key: Tensor, value: Tensor, samples: slice) -> Tensor:
        """Run the model's own function, in the dtype of ``query``.

        Args:
            query: (b, H, L, E), the given samples of the request's query, or like it.
            key: (b, Hkv, S, E).
            value: (b, Hkv, S, Ev).
            samples: Which samples of the batch these are; masks are cut accordingly.

        Returns:
            (b, H, L, Ev).
        """
        ...


class Memory(Protocol):
    """Where a host keeps what a layer remembers between two calls.

    Attributes:
        state: None before the first token.
    """

    state: RecurrentState | None


class Span(Request, Protocol):
    """A call of a layer whose attention is a recurrence: the next L tokens."""

    @property
    def x(self) -> Tensor:
        """(B, L, D), the layer's input."""
        ...

    @property
    def memory(self) -> Memory | None:
        """Where the state is kept; None for a call that keeps nothing."""
        ...

    @property
    def scale(self) -> float:
        """What the layer's attention multiplies its logits by."""
        ...

    def tokens(self, seen: int) -> Mask:
        """Return the mask of the ``seen + L`` tokens so far.

        Raises:
            UnsupportedError: The call asks for what no recurrence does; it is named.
        """
        ...


class Passage(Protocol):
    """One call of a feed-forward site, as its host received it."""

    @property
    def x(self) -> Tensor:
        """(..., D), tokens; (T, D) of experts."""
        ...

    @property
    def routing(self) -> Routing | None:
        """None at a network."""
        ...

    def weights(self) -> Weights:
        """Return the site's weights, as they are now."""
        ...

    def own(self, dtype: torch.dtype) -> Tensor:
        """Run the model's own module in a dtype, shaped as ``x``."""
        ...


class Mixer(Protocol):
    """What stands at a site: answers a `Request` with (B, H, L, Ev).

    At a feed-forward site it is given a `Passage`. One that is also a `StateMixer` is given a
    `Span`; one that is also a `LayerMixer` may be put into the model as it is.
    """

    def __call__(self, request: Any) -> Tensor: ...


@runtime_checkable
class StateMixer(Mixer, Protocol):
    """A mixer with a state: a recurrence, in place of a layer's attention.

    Attributes:
        module: Its parameters, which the host registers under the layer; None for none.
        replaces: Whether the host's cache keeps the state instead of keys and values; False while
            it is tried beside the model's own function.
    """

    module: nn.Module | None
    replaces: bool


@runtime_checkable
class LayerMixer(Mixer, Protocol):
    """A mixer that is a layer, in the place of a feed-forward one."""

    layer: nn.Module


class Attachment(Protocol):
    """A mixer at a site, until undone."""

    def blocked(self) -> str | None:
        """Return why it cannot be undone now (what stands on top of it), or None."""
        ...

    def undo(self) -> None:
        """Put back, by identity, what was there."""
        ...


class Host(Protocol):
    """An adapter to one library; offered by the hook `attnkit_hosts`.

    Attributes:
        name: Name of the library, which is also the distribution whose version receipts show.
        tested: Its versions that the adapter was tested with, by their first numbers
            (``("5.23", "6")``); empty where there is no library.
    """

    name: str
    tested: tuple[str, ...]

    def sites(self, model: nn.Module) -> Sequence[Site]:
        """Return the sites of this library's modules in a model; none for a foreign model."""
        ...

    def attach(self, model: nn.Module, site: Site, mixer: Mixer, label: str) -> Attachment:
        """Put a mixer at a site, on top of one that may be there.

        Args:
            model: The model that was surveyed.
            site: One of its sites.
            mixer: Answers the site's calls from now on.
            label: What to call it in messages.
        """
        ...

    def sample(self, model: nn.Module, sites: Sequence[Site]) -> Mapping[str, object]:
        """Make inputs that exercise a model: padding, more tokens than a window has.

        Raises:
            SwapError: It cannot be told what this model takes.
        """
        ...

    def run(self, model: nn.Module, sample: Mapping[str, object]) -> Mapping[str, Tensor]:
        """Run a model, with a cached step after it where the model has a cache.

        Returns:
            Its float outputs by name, (..., D) each, without the rows of padding.
        """
        ...


@runtime_checkable
class Opener(Protocol):
    """A host that can also open what its library saved."""

    name: str

    def open(self, folder: Path) -> nn.Module | None:
        """Return the model in a folder, in eval mode; None if it is not of this library.

        Raises:
            ConfigError: It is, but cannot be opened.
            UnsupportedError: It is, but the library is not installed.
        """
        ...


@runtime_checkable
class FeedforwardHost(Protocol):
    """A host that has feed-forward sites which are no mixtures."""

    def weights(self, model: nn.Module, path: str) -> Weights:
        """Return the weights of a feed-forward site."""
        ...


LeakName = Literal["causality", "padding", "packing", "batch"]


@dataclass(frozen=True)
class Pair:
    """Two inputs of a model, and the outputs that are compared.

    Attributes:
        one: Keyword arguments of the model's forward.
        other: The same with a change.
        rows: Of an output, by its name: bool, of its leading sizes, the rows that are compared;
            None if it is not compared.
    """

    one: Inputs
    other: Inputs
    rows: Rows

    def kept(self, outputs: Outputs) -> dict[str, Tensor]:
        """Return the rows that are compared."""
        found = {}
        for name, out in outputs.items():
            rows = self.rows(name, out)
            if rows is not None and bool(rows.any()):
                found[name] = out[rows.to(out.device)]
        return found

    def run(self, run: Callable[[Inputs], Outputs]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return what is compared."""
        return self.kept(run(self.one)), self.kept(run(self.other))


@dataclass(frozen=True)
class Probe:
    """A change of a model's input, and who may see it.

    Attributes:
        name: What is asked.
        changed: What differs, in words.
        stays: Where it may not be seen.
        moves: Where it must be seen, or nothing was asked.
    """

    name: LeakName
    changed: str
    stays: Pair
    moves: Pair


@runtime_checkable
class Prober(Protocol):
    """A host that can make probes of a model."""

    def probes(self, model: nn.Module, sites: Sequence[Site], sample: Inputs) -> Sequence[Probe]:
        """Vary a sample where a causal, padded or packed model may not look."""
        ...
