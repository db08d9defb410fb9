"""What a host tells about a model: where variants can go, and what arrives there.

A *host* is a library whose modules can receive a variant (transformers, timm, torch.nn ...); a
plugin offers its adapter through the hook `attnkit_hosts`. Core imports no such library: it sees
`Site` records, and at run time one `Request` per call of a site. `attnkit.swaps.api` has what users
call, `attnkit.swaps.transaction` what is done with a site.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from attnkit.frozen import Frozen
from attnkit.text import table

Kind = Literal["attention", "feedforward"]

ROOT = "(model)"
"""Path of a site that is the model itself."""


class Needs(Frozen):
    """What the layer at a site uses; None where the model does not tell before it runs."""

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


class Site(Frozen):
    """One place in a model where a variant can go."""

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


def with_remarks(text: str, sites: Sequence[Site]) -> str:
    """Put the remarks of some sites below a text, each once."""
    remarks = dict.fromkeys(site.remark for site in sites if site.remark)
    return "\n\n".join([text, *remarks])


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
