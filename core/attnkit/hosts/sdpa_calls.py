"""Modules that call `torch.nn.functional.scaled_dot_product_attention`: the call is the site.

That function says all there is to know about attention (query, key, value, mask, scale, dropout),
so a module that calls it needs no description. `intercept` runs a module's own method and hands
these calls, and no others, to the mixer of its mount.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import index
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from attnkit.errors import ShapeError, UnsupportedError
from attnkit.hosts.protocol import Call
from attnkit.masks.constructors import Sizes, causal, dense, full
from attnkit.masks.reader import read_mask

if TYPE_CHECKING:
    from attnkit.hosts.mounts import Mount

_WEIGHTS = re.compile(r"(output|need|return|get|with)_.*(att|weights).*")
"""Names of arguments that ask for attention weights."""

NAME = "scaled_dot_product_attention"


def calls_attention(layer: type, method: str = "forward") -> bool:
    """Say whether a class's method calls torch's attention function by name."""
    found = inspect.unwrap(getattr(layer, method, calls_attention))
    return inspect.isfunction(found) and NAME in found.__code__.co_names


def intercept(mount: Mount, *args: Any, **keywords: Any) -> Any:
    """Run a module's own method, its calls of torch's attention answered by the mixer.

    Raises:
        UnsupportedError: Asked for attention weights, it went past torch's function, and so past
            the mixer.
    """
    own, calls = mount.own(), _Intercepting(mount)
    with calls:
        out = own(*args, **keywords)
    # no graph can count: one is made of what was called before, or refused below
    if not torch.compiler.is_compiling() and not calls.answered:
        given = inspect.signature(own).bind_partial(*args).arguments
        _check_weights(mount, given | keywords)
    return out


def _check_weights(mount: Mount, given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if _WEIGHTS.fullmatch(name) and isinstance(value, bool) and value:
            raise UnsupportedError(
                f"{name}: {type(mount.module).__name__} has attention weights from arithmetic of "
                f"its own, in which {mount.label!r} does not run; restore the swap to get them"
            )


class _Intercepting(TorchFunctionMode):
    def __init__(self, mount: Mount) -> None:
        super().__init__()
        self.mount = mount
        self.answered = False

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is functional.scaled_dot_product_attention:
            if not torch.compiler.is_compiling():
                self.answered = True
            # not for the modules around this one either, whose calls these are not
            with torch._C.DisableTorchFunction():
                return attend(self.mount, *args, **(kwargs or {}))
        if torch.compiler.is_compiling() and _is_method(func):
            # the compiler knows a tensor's methods by name, and cannot trace all their bodies
            return getattr(args[0], func.__name__)(*args[1:], **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _is_method(function: Any) -> bool:
    """Say whether a function is a method of tensors."""
    return getattr(torch.Tensor, getattr(function, "__name__", ""), None) is function


def attend(
    mount: Mount,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Answer a call of torch's attention function, whose arguments these are.

    Tensors have any number of dimensions from 2; ``enable_gqa`` is a matter of shapes here.
    """
    if is_causal and attn_mask is not None:
        raise UnsupportedError(
            f"is_causal and attn_mask: {type(mount.module).__name__} gives both to {NAME}, where "
            "torch takes one or the other; put the causal mask into attn_mask"
        )
    rank, lead = query.dim(), query.shape[:-2]
    mask = None if attn_mask is None else _four(attn_mask, rank, lead, whole=False)
    query_4, key_4, value_4 = autocast(
        *(_four(each, rank, lead, whole=True) for each in (query, key, value))
    )
    request = Arrived(mount, query_4, key_4, value_4, attn_mask, mask, dropout_p, is_causal, scale)
    out = mixed(mount, request)
    return out.reshape(*query.shape[:-1], value.shape[-1])


@dataclass
class Arrived:
    """See `attnkit.hosts.protocol.Request`; ``mask`` is ``given`` with 4 dimensions."""

    mount: Mount
    query: Tensor
    key: Tensor
    value: Tensor
    given: Tensor | None
    mask: Tensor | None
    dropout_p: float
    is_causal: bool
    scale: float | None

    def call(self) -> Call:
        """Translate torch's arguments."""
        batch, heads, length, _ = self.query.shape
        keys, needs = self.key.shape[2], self.mount.needs
        mask, bias = full(), None
        if self.given is not None and self.mask is not None:
            sizes = Sizes(batch, heads, length, keys)
            mask, bias = read_mask("attn_mask", self.given, self.mask, sizes, window=needs.window)
        elif self.is_causal and length == keys:
            mask = causal()
        elif self.is_causal:
            seen = torch.ones(length, keys, dtype=torch.bool, device=self.query.device)
            mask = dense(seen.tril()[None, None])
        return Call(
            query=self.query,
            key=self.key,
            value=self.value,
            mask=mask,
            bias=bias,
            scale=self.scale,
            dropout_p=self.dropout_p,
            # a causal layer with more keys than queries has a cache before them
            aligned=length == keys or bool(needs.causal),
        )

    def own(self, query: Tensor, key: Tensor, value: Tensor, samples: slice) -> Tensor:
        """Run torch's function."""
        return functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=fit(self.mask, self.query.shape[0], query.dtype, samples),
            dropout_p=self.dropout_p,
            is_causal=self.is_causal,
            scale=self.scale,
            # in a graph with symbols for sizes, torch takes no symbol for this
            enable_gqa=index(query.shape[1]) != index(key.shape[1]),
        )


def mixed(mount: Mount, request: Any) -> Tensor:
    """Let the mount's mixer answer, and check the shape of its answer."""
    out = mount.mixer(request)
    wanted = (*request.query.shape[:3], request.value.shape[3])
    if out.shape != wanted:
        raise ShapeError(
            f"{mount.label!r} must return (B, H, L, Ev) = {wanted}, got {tuple(out.shape)}"
        )
    return out


def fit(given: Tensor | None, batch: int, dtype: torch.dtype, samples: slice) -> Tensor | None:
    """Cut a mask of 4 dimensions to some samples; give additive ones the dtype of the query."""
    if given is None:
        return None
    if given.dim() == 4 and given.shape[0] == batch > 1:
        given = given[samples]
    return given.to(dtype) if given.is_floating_point() else given


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast to the dtype of autocast where it is on, as torch's own attention does."""
    kind = "cpu" if tensors[0].is_cpu else tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(t.to(dtype) if t.dtype != torch.float64 else t for t in tensors)


def _four(given: Tensor, rank: int, lead: torch.Size, *, whole: bool) -> Tensor:
    """Bring a tensor to 4 dimensions, as the query's ``rank`` and leading sizes say.

    It may have fewer, that are broadcast; ``whole``: a batch of one must become the query's.
    """
    tensor = given[(None,) * (rank - given.dim())]
    if rank < 4:
        # no dimension of heads
        return tensor[None, None] if rank == 2 else tensor[:, None]
    if rank > 4 or (whole and tensor.shape[0] != lead[0]):
        return tensor.expand(*lead[:-1], *tensor.shape[-3:]).flatten(0, rank - 4)
    return tensor
