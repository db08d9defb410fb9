"""What a host tells about a model: where variants can go, and what arrives there.

A *host* is a library whose modules can receive a variant (transformers, timm, torch.nn ...); a
plugin offers its adapter through the hook `attnkit_hosts`. Core imports no such library: it sees
`Site` records, and at run time one `Request` per call of a site. `attnkit.swaps.api` has what users
call, `attnkit.swaps.transaction` what is done with a site.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

from attnkit.text import table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from attnkit.masks.constructors import Mask

Kind = Literal["attention", "feedforward"]

ROOT = "(model)"
"""Path of a site that is the model itself."""


class Needs(BaseModel):
    """What the layer at a site uses; None where the model does not tell before it runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    heads: int | None = Field(default=None, description="H, query heads")
    kv_heads: int | None = Field(default=None, description="Hkv, key/value heads")
    head_dim: int | None = Field(default=None, description="E, width of a query or key head")
    causal: bool | None = Field(default=None, description="no query sees a later key")
    cross: bool = Field(default=False, description="keys come from elsewhere than queries")
    window: int | None = Field(default=None, description="sliding window, in keys, self included")
    softcap: float | None = Field(
        default=None, description="logits are capped at plus and minus this"
    )
    scale: float | None = Field(
        default=None, description="multiplies the logits; None for E ** -0.5"
    )
    sinks: bool = Field(default=False, description="one extra logit per head in the denominator")
    bias: bool = Field(default=False, description="a float tensor is added to the logits")
    dropout: float = Field(default=0.0, description="share of probabilities dropped in training")
    cache: bool = Field(default=False, description="keys and values of earlier calls are kept")
    embed_dim: int | None = Field(
        default=None, description="D, width of a feed-forward layer's input"
    )
    hidden_dim: int | None = Field(default=None, description="F, width inside a feed-forward layer")
    activation: str | None = Field(
        default=None, description="class of a feed-forward layer's activation"
    )
    gated: bool | None = Field(
        default=None, description="W_down (activation(W_gate x) * W_up x), without biases"
    )
    num_experts: int | None = Field(
        default=None, description="of a mixture; its router is no part of the site"
    )

    def __str__(self) -> str:
        """Say it in a few words: ``causal, GQA 32/8, head_dim 128, window 4096``."""
        return ", ".join(_words(self)) or "-"


class Site(BaseModel):
    """One place in a model where a variant can go."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(description="the module's name in ``model.named_modules()``, or `ROOT`")
    kind: Kind
    layer: str = Field(description="class of the module")
    host: str = Field(description="name of the adapter that knows this module")
    needs: Needs
    dtype: str = Field(description="dtype of its parameters, ``float32``")
    device: str = Field(description="device type of its parameters, ``cpu``")
    obstacle: str | None = Field(
        default=None, description="why nothing can go here; None if it can"
    )
    remark: str | None = Field(
        default=None, description="what to know of its host: a version that was not tested"
    )
    input_dim: int | None = Field(
        default=None,
        description="D, where the host hands on the layer's input and keeps a state for it, as "
        "a recurrence needs",
    )
    intercepts: bool = Field(
        default=False,
        description="what is swapped is every call of torch's attention function that the layer "
        "makes, itself or through a module inside it",
    )


class Survey(tuple[Site, ...]):
    """The sites of a model in the order of its modules; prints as a table."""

    __slots__ = ()

    def __str__(self) -> str:
        rows = [(s.path, s.kind, s.layer, s.obstacle or str(s.needs)) for s in self]
        return with_remarks(table(("site", "kind", "layer", "needs"), rows), self)


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


class Mixer(Protocol):
    """What stands at a site: answers a request with (B, H, L, Ev).

    At a feed-forward site the request is `attnkit.swaps.feedforward_site.Passage`, at an attention
    site of a recurrence `attnkit.swaps.recurrence_site.Span`.
    """

    def __call__(self, request: Any) -> Tensor: ...


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


def with_remarks(text: str, sites: Sequence[Site]) -> str:
    """Put the remarks of some sites below a text, each once."""
    remarks = dict.fromkeys(site.remark for site in sites if site.remark)
    return "\n\n".join([text, *remarks])


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


def _words(needs: Needs) -> list[str]:
    words = []
    if needs.causal is not None:
        words.append("causal" if needs.causal else "bidirectional")
    if needs.cross:
        words.append("cross")
    if needs.heads is not None:
        grouped = needs.kv_heads not in (None, needs.heads)
        words.append(f"GQA {needs.heads}/{needs.kv_heads}" if grouped else f"{needs.heads} heads")
    named = ("head_dim", "window", "softcap", "scale", "embed_dim", "hidden_dim")
    told = ((name, getattr(needs, name)) for name in named)
    words += [f"{name} {value:g}" for name, value in told if value is not None]
    words += [f"{value}" for value in (needs.activation,) if value]
    words += [f"{needs.num_experts} experts"] if needs.num_experts else []
    words += [name for name in ("gated", "sinks", "bias", "cache") if getattr(needs, name)]
    return [*words, f"dropout {needs.dropout:g}"] if needs.dropout else words
