"""What a host must implement, and what it may: the contract of an adapter, whole.

A *host* is a library whose modules can receive a variant (transformers, timm, torch.nn ...). A
plugin offers its adapter, a `Host`, by the hook `attnkit_hosts`; `docs/how-to/write-a-host.md`
builds one.

    must    Host              sites, attach, sample, run
    may     Opener            open: a model that the library saved
            Prober            probes: a sample, varied where a model may not look
            FeedforwardHost   weights: of a feed-forward layer

Each of the three is told by its type. A host is never asked for what it does not implement; what
needs that is refused by name.

A swap finds the places, `Host.sites`, makes inputs, `Host.sample`, and puts a `Mixer` at each site
for as long as the model runs: `Host.attach`, `Host.run`, `Attachment.undo`. There, each call of a
site reaches its mixer: as a `Request` at an attention layer, or as a `Span` if the mixer is a
`StateMixer`; as a `Passage` at a feed-forward layer. ``call`` says in attnkit's words what is to be
computed, ``own`` computes what the model would have; a swap compares the two before anything stays.

What always holds:

- Only ``attach`` writes to a model. It does all that it does, or raises and has changed nothing.
- ``undo`` puts back, by identity, what was there: attributes, classes, hooks, submodules in their
  order. A swap rehearses both before it runs the model.
- Attachments stack and come out in reverse order. One that another stands on is ``blocked``, and
  says by what.
- What stands in a model is copied and pickled with it: functions of modules, no closures.
- A model runs in eval mode, without gradients. What a host draws at random has a seed.
- An answer of the wrong kind is a `HostError`, which names the host, what came and what is allowed
  (`attnkit.hosts.answers`). Other errors of a host pass through. Either way the model is as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor, nn

    from attnkit.hosts.parts import Routing, Weights
    from attnkit.masks.constructors import Mask
    from attnkit.sites import Site
    from attnkit.state import RecurrentState

Inputs: TypeAlias = Mapping[str, object]
Outputs: TypeAlias = "Mapping[str, Tensor]"
Rows: TypeAlias = "Callable[[str, Tensor], Tensor | None]"


# what a host must implement


class Host(Protocol):
    """An adapter to one library; offered by the hook `attnkit_hosts`.

    Attributes:
        name: Name of the library, which is also the distribution whose version receipts show. No
            other host has it.
        tested: Its versions that the adapter was tested with, by their first numbers
            (``("5.23", "6")``); empty where there is no library.
    """

    name: str
    tested: tuple[str, ...]

    def sites(self, model: nn.Module) -> Sequence[Site]:
        """Return the sites of this library's modules in a model; none in a foreign one.

        Every host is asked about every model, so a library that was never imported is not imported
        for this. `attnkit.hosts.mounts.site_at` makes the record; each `Site` bears this host's
        name. What is known to stand in a variant's way is its ``obstacle``.
        """
        ...

    def attach(self, model: nn.Module, site: Site, mixer: Mixer, label: str) -> Attachment:
        """Put a mixer at a site, on top of one that may be there.

        Args:
            model: The model that was surveyed.
            site: One of its sites, without obstacle.
            mixer: Answers the site's calls from now on. A `StateMixer` only where the site has an
                ``input_dim``; a `LayerMixer` only at a feed-forward site.
            label: Name of the variant, for messages.

        Raises:
            AttnkitError: It cannot stand here; nothing was changed.
        """
        ...

    def sample(self, model: nn.Module, sites: Sequence[Site]) -> Mapping[str, object]:
        """Make keyword arguments that exercise a model: padding, more tokens than a window has.

        Raises:
            SwapError: It cannot be told what this model takes.
        """
        ...

    def run(self, model: nn.Module, sample: Mapping[str, object]) -> Mapping[str, Tensor]:
        """Run a model, with a cached step after it where the model has a cache.

        Returns:
            Its float outputs by name, (..., D) each, without the rows of padding; the same names
            each time. None at all if it has no such outputs, and then only sites are compared.
        """
        ...


@runtime_checkable
class Attachment(Protocol):
    """A mixer at a site, until undone."""

    def blocked(self) -> str | None:
        """Return why it cannot be undone now (what stands on top of it), or None; change nothing.

        None right after ``attach``.
        """
        ...

    def undo(self) -> None:
        """Put back, by identity, what was there."""
        ...


# what a host may implement


@runtime_checkable
class Opener(Protocol):
    """A host that can also open what its library saved, for the command line."""

    name: str

    def open(self, folder: Path) -> nn.Module | None:
        """Return the model in a folder, in eval mode; None if it is not of this library.

        Raises:
            ConfigError: It is, but cannot be opened.
            UnsupportedError: It is, but the library is not installed.
        """
        ...


@runtime_checkable
class Prober(Protocol):
    """A host that can make probes of a model.

    Of another one's models only `attnkit.hosts.leak_probes.neighbours` is asked.
    """

    def probes(self, model: nn.Module, sites: Sequence[Site], sample: Inputs) -> Sequence[Probe]:
        """Vary a sample where a causal, padded or packed model may not look."""
        ...


@runtime_checkable
class FeedforwardHost(Protocol):
    """A host that has feed-forward sites which are no mixtures."""

    def weights(self, model: nn.Module, path: str) -> Weights:
        """Return the weights of a feed-forward site."""
        ...


# what a host is given: mixers, told apart by their type


class Mixer(Protocol):
    """What stands at a site: answers a `Request` with (B, H, L, Ev), in the query's dtype.

    At a feed-forward site it answers a `Passage`, shaped as its x.
    """

    def __call__(self, request: Any) -> Tensor: ...


@runtime_checkable
class StateMixer(Mixer, Protocol):
    """A mixer with a state: a recurrence, in place of a layer's attention; answers a `Span`.

    Attributes:
        module: Its parameters, which the host registers under the layer; None for none.
        replaces: Whether the host's cache keeps the state instead of keys and values; False while
            it is tried beside the model's own function.
    """

    module: nn.Module | None
    replaces: bool


@runtime_checkable
class LayerMixer(Mixer, Protocol):
    """A mixer that is a layer: ``layer`` itself takes the place of a feed-forward one.

    One of a feed-forward site that is no `LayerMixer` is called by what the host puts there.
    """

    layer: nn.Module


# what a host hands to a mixer: one call of a site


# not frozen: that alone would cost a microsecond in every layer, at every token
@dataclass(slots=True)
class Call:
    """The arguments of `attnkit.attention` that one call of a site amounts to; never changed.

    Attributes:
        query: (B, H, L, E).
        key: (B, Hkv, S, E).
        value: (B, Hkv, S, Ev).
        mask: Who may look at what; `attnkit.masks.reader.read_mask` reads tensors.
        bias: Broadcastable to (B, H, L, S), added to the logits.
        scale: Multiplies the logits; None for ``E ** -0.5``.
        softcap: Caps the logits at plus and minus this; None for no cap.
        sinks: (H,), one extra logit per head in the denominator.
        dropout_p: Share of probabilities to drop in this call; 0.0 in eval mode.
        aligned: Whether query i is known to stand at key i + S - L, as masks by position presume;
            not where the keys end in unwritten places of a cache.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Mask
    bias: Tensor | None = None
    scale: float | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    dropout_p: float = 0.0
    aligned: bool = True

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of `attnkit.attention`."""
        names = (each.name for each in fields(self) if each.name != "aligned")
        return {name: getattr(self, name) for name in names}


@runtime_checkable
class Request(Protocol):
    """One call of an attention site, as its host received it."""

    @property
    def query(self) -> Tensor:
        """(B, H, L, E)."""
        ...

    @property
    def key(self) -> Tensor:
        """(B, Hkv, S, E)."""
        ...

    @property
    def value(self) -> Tensor:
        """(B, Hkv, S, Ev)."""
        ...

    def call(self) -> Call:
        """Translate the host's arguments, all of them: one that is dropped changes the result.

        Raises:
            UnsupportedError: An argument has no translation; it is named.
        """
        ...

    def own(self, query: Tensor, key: Tensor, value: Tensor, samples: slice) -> Tensor:
        """Run the model's own function, never a mixer, on these tensors and the call's arguments.

        In float64 it is what a variant is measured by: whatever else is a tensor, a mask or a
        bias that is added, takes the dtype of ``query``.

        Args:
            query: (b, H, L, E), the given samples of the request's query, or like it.
            key: (b, Hkv, S, E).
            value: (b, Hkv, S, Ev).
            samples: Which samples of the batch these are; masks are cut accordingly, see
                `attnkit.hosts.sdpa_calls.fit`.

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


@runtime_checkable
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


@runtime_checkable
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
        """Run the model's own module in a dtype, its weights cast to that; shaped as ``x``."""
        ...


# what a `Prober` makes

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
