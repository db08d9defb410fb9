"""`declare`: where attention is in a module of your own, so that variants can be swapped in.

A module whose ``forward`` calls `torch.nn.functional.scaled_dot_product_attention` needs no
declaration: that call is the site. A module that does the arithmetic itself puts it into a
method, and the declaration names the method's parameters:

    class MyAttention(nn.Module):
        def forward(self, x):
            q, k, v = ...  # (B, H, L, E) each
            return self.out(self.attend(q, k, v).transpose(1, 2).flatten(2))

        def attend(self, q, k, v, visible=None): ...

    attnkit.declare(MyAttention, method="attend", query="q", key="k", value="v", mask="visible")

What is declared is not believed but measured: a swap compares the variant with the method on the
tensors that reach it, in float64, before anything is changed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from attnkit.errors import ArgumentError
from attnkit.sites import Needs

if TYPE_CHECKING:
    from torch import nn

Layout = Literal["BHLE", "BLHE"]

MEMBER = "__attnkit__"
"""Attribute of a declared class that holds its `Declaration`; subclasses inherit it."""

Class = TypeVar("Class", bound=type)


@dataclass(frozen=True)
class Declaration:
    """What `declare` was told, and the method's parameters with their defaults.

    Attributes:
        method: Name of the method.
        parameters: Names of its parameters, by what they mean; none where the site is the calls
            of torch's function.
        layout: Of the tensors.
        needs: What the layer uses.
        names: All parameter names in order, ``self`` left out.
        defaults: Of those that have one.
    """

    method: str
    parameters: dict[str, str]
    layout: Layout
    needs: Needs | Callable[[nn.Module], Needs]
    names: tuple[str, ...]
    defaults: dict[str, object]

    def needs_of(self, module: nn.Module) -> Needs:
        """Return what a module needs."""
        return self.needs if isinstance(self.needs, Needs) else self.needs(module)


def declare(
    layer: Class,
    *,
    method: str = "forward",
    query: str | None = None,
    key: str | None = None,
    value: str | None = None,
    mask: str | None = None,
    hidden: str | None = None,
    bias: str | None = None,
    layout: Layout = "BHLE",
    needs: Needs | Callable[[nn.Module], Needs] | None = None,
) -> Class:
    """Say where attention is in a class of modules; a later declaration replaces an earlier one.

    Without ``query``, ``key`` and ``value`` the site is every call of
    `torch.nn.functional.scaled_dot_product_attention` that the method makes, itself or through
    others; a plan that leaves out a site inside the module is refused for it. With them the method
    is the attention: it takes the three and returns the mixed values, and all else that decides
    its result is declared here. A parameter that is not declared must keep its default, or be None
    or False, in every call of a swapped module; else the call is refused.

    Args:
        layer: A class of `torch.nn.Module`.
        method: Name of the method.
        query: Name of its parameter (B, H, L, E); or (B, L, H, E), see ``layout``.
        key: Name of its parameter (B, Hkv, S, E).
        value: Name of its parameter (B, Hkv, S, Ev).
        mask: Name of its parameter for a mask, broadcastable to (B, H, L, S): bool, True may
            attend; or floating, added to the logits.
        hidden: The same, but True is hidden.
        bias: Name of its parameter for what is added to the logits.
        layout: Of the query, the key, the value and the result.
        needs: What the layer uses, or a function of the module that says so. ``causal``
            (lower-right aligned), ``window``, ``scale``, ``softcap`` and ``dropout`` are applied
            where the method is the attention; the rest is shown by `attnkit.survey`.

    Returns:
        ``layer``.

    Raises:
        ArgumentError: Not a class of modules, no such method, or no such parameter.
    """
    names, defaults = _parameters(layer, method)
    told = {"query": query, "key": key, "value": value, "mask": mask, "hidden": hidden}
    told["bias"] = bias
    given = {meaning: name for meaning, name in told.items() if name is not None}
    made = Declaration(method, given, layout, needs or Needs(), names, defaults)
    _check(layer, made)
    setattr(layer, MEMBER, made)
    return layer


def declaration(layer: type) -> Declaration | None:
    """Return what was declared of a class or of one it is derived from."""
    found: Declaration | None = getattr(layer, MEMBER, None)
    return found


def _parameters(layer: Any, method: str) -> tuple[tuple[str, ...], dict[str, object]]:
    import torch

    if not isinstance(layer, type) or not issubclass(layer, torch.nn.Module):
        raise ArgumentError(f"layer must be a class of torch.nn.Module, got {layer!r}")
    found = getattr(layer, method, None)
    if not inspect.isfunction(found):
        raise ArgumentError(f"method: {layer.__name__} has no method {method!r}")
    given = list(inspect.signature(found).parameters.values())[1:]
    defaults = {each.name: each.default for each in given if each.default is not each.empty}
    return tuple(each.name for each in given), defaults


def _check(layer: type, made: Declaration) -> None:
    told = made.parameters
    tensors = {"query", "key", "value"}
    if told and not tensors <= set(told):
        missing = ", ".join(sorted(tensors - set(told)))
        raise ArgumentError(
            f"{missing}: name the parameters of query, key and value, or none of them; got "
            f"{', '.join(sorted(told))}"
        )
    for meaning, name in told.items():
        if name not in made.names:
            raise ArgumentError(
                f"{meaning}: {layer.__name__}.{made.method} has no parameter {name!r}; it has "
                f"{', '.join(made.names)}"
            )
    if made.layout not in ("BHLE", "BLHE"):
        raise ArgumentError(f"layout must be 'BHLE' or 'BLHE', got {made.layout!r}")
    if isinstance(made.needs, Needs) and made.needs.sinks:
        raise ArgumentError("needs: sinks cannot be declared, the method has no parameter for them")
