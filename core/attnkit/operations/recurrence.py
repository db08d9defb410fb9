"""`recurrence`: one call for every variant that carries a state instead of a cache."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from attnkit.choice.decision import AUTO, choose, resolve
from attnkit.errors import (
    ArgumentError,
    DeviceError,
    DtypeError,
    ShapeError,
    UnsupportedError,
)
from attnkit.masks.codes import encode
from attnkit.masks.constructors import Causal, Documents, Mask, Padding, Sizes, full
from attnkit.operations import arguments as validation
from attnkit.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from attnkit.choice.decision import Chosen
    from attnkit.interface import Options, Variant


def recurrence(
    variant: Variant | str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    log_decay: Tensor | None = None,
    beta: Tensor | None = None,
    scale: float | None = None,
    mask: Mask = full(),
    seen: int = 0,
    initial_state: Tensor | None = None,
    options: Options | None = None,
    implementation: str = AUTO,
    fallback: Sequence[str] = (),
) -> tuple[Tensor, Tensor]:
    """Run a recurrence over L tokens.

        S_t = exp(g_t) S_{t-1} + k_t v~_t^T,    o_t = scale * S_t^T q_t

    with v~_t = v_t, or v~_t = beta_t (v_t - (exp(g_t) S_{t-1})^T k_t) where beta is given.
    Head h of ``value`` reads group h // (H // G) of ``query`` and ``key``.

    Args:
        variant: A variant of the family ``recurrence``, or its name.
        query: (B, G, L, E), floating.
        key: (B, G, L, E).
        value: (B, H, L, Ev); G divides H.
        log_decay: g, natural logarithm of the decay, <= 0: (B, H, L), or (B, H, L, E) for one
            per key channel; None for no decay.
        beta: (B, H, L), strength of the delta rule; None for none.
        scale: Dimensionless; None means 1.
        mask: Padding and documents over the ``seen + L`` tokens so far; `causal` and `full` say
            the same here. A padded token leaves the state as it was; a new document starts from
            an empty one.
        seen: How many tokens ``initial_state`` has seen.
        initial_state: (B, H, E', Ew), float32, or float64 for float64 inputs; None for an empty
            one. E' and Ew are E and Ev unless ``options.state_shape`` says otherwise.
        options: The variant's ``options``; None for their defaults.
        implementation: Exactly this one, or ``auto`` for the cheapest that can.
        fallback: Implementations to try, in this order, if ``implementation`` cannot.

    Returns:
        The outputs (B, H, L, Ev) in the dtype of ``value``, and the final state, shaped and
        typed as ``initial_state``.

    Raises:
        ShapeError: Two shapes disagree; the message prints both.
        DtypeError: Not one floating dtype, or a state of another than float32 or float64.
        UnsupportedError: The variant cannot honour the call; with every reason.
        MaskError: The mask does not fit.
    """
    found = _resolve(variant)
    options = found.default_options if options is None else options
    if options is None:
        raise ArgumentError(
            f"options of variant {found.name!r} must be given: {found.options.__name__} has "
            "fields without a default"
        )
    if type(options) is not found.options:
        raise ArgumentError(
            f"options of variant {found.name!r} must be {found.options.__name__}, "
            f"got {type(options).__name__}"
        )
    _check(query, key, value, log_decay, beta, scale, mask)
    batch, heads, length, value_width = value.shape
    wide = torch.promote_types(value.dtype, torch.float32)
    shape = (batch, heads, *options.state_shape(query.shape[3], value_width))
    if initial_state is None:
        initial_state = value.new_zeros(shape, dtype=wide)
    _check_state(initial_state, shape, wide, value)
    tensors = (query, key, value, log_decay, beta, initial_state)
    problem = problem_of_recurrence(query, key, value, log_decay, beta, scale, mask, initial_state)
    if torch.compiler.is_compiling():
        chosen = choose(found, problem, implementation, fallback)
        return _in_a_graph(chosen, options, tensors, (scale, seen), mask)
    # first of all: a mask that no recurrence takes is refused for what it is
    layout = layout_of(mask, batch, seen, length)
    chosen = choose(found, problem, implementation, fallback)
    call = _Call(chosen.function, 1.0 if scale is None else float(scale), options, layout)
    if torch.is_autocast_enabled(value.device.type):
        with torch.autocast(value.device.type, enabled=False):
            return _run(call, *tensors)
    return _run(call, *tensors)


def _in_a_graph(
    chosen: Chosen,
    options: Options,
    tensors: tuple[Tensor | None, ...],
    numbers: tuple[float | None, int],
    mask: Mask,
) -> tuple[Tensor, Tensor]:
    """Make one operator of a call, which reads the mask when it runs."""
    # not on top: it registers operators, and loads what traces
    from attnkit.choice.graphs import settings_while_compiling, settled
    from attnkit.operations.graph_operator import operator

    told = tuple((field, settled(given)) for field, given in options.__dict__.items())
    settings = settings_while_compiling(chosen.variant.name, told, chosen.name)
    made: tuple[Tensor, Tensor] = operator(settings, *tensors, *numbers, *encode(mask))
    return made


class Layout(NamedTuple):
    """What a mask says about the last L tokens of a recurrence.

    Attributes:
        keep: (B, L), False at padding; None where there is none.
        starts: (B, L), True at the first token of a document that is not the first one ever;
            None where there is one document.
    """

    keep: Tensor | None
    starts: Tensor | None


def layout_of(mask: Mask, batch: int, seen: int, length: int) -> Layout:
    """Read padding and documents out of a mask over ``seen + length`` tokens.

    Raises:
        UnsupportedError: The mask hides anything else; a recurrence cannot.
        MaskError: It does not fit.
    """
    keep = starts = None
    sizes = Sizes(batch, 1, length, seen + length)
    for part in mask.conjuncts():
        part.check(sizes)
        if isinstance(part, Padding):
            real = part.keep(sizes)[:, seen:]
            keep = real if keep is None else keep & real
        elif isinstance(part, Documents):
            following = part.ids[:, 1:] != part.ids[:, :-1]
            first = torch.zeros_like(part.ids[:, :1], dtype=torch.bool)
            begins = torch.cat((first, following), 1)[:, seen:]  # (B, L)
            starts = begins if starts is None else starts | begins
        elif not isinstance(part, Causal):
            raise UnsupportedError(
                f"a recurrence cannot apply the mask {part!r}; it takes padding, left_padding "
                "and documents, and is causal by itself"
            )
    return Layout(keep, starts)


class _Call(NamedTuple):
    function: Any
    scale: float
    options: Options
    layout: Layout


def _run(
    call: _Call,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor | None,
    beta: Tensor | None,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    # features may be wider than the inputs
    keep, dtype = call.layout.keep, value.dtype
    # before the features too: what padding holds may be NaN, and so would be its gradient
    query, key, value = (_zeroed(x, keep) for x in (query, key, value))
    query, key, value = call.options.features(query, key, value)
    query, key, value = (_zeroed(x, keep) for x in (query, key, value))
    log_decay = None if log_decay is None else _zeroed(log_decay, keep)
    beta = None if beta is None else _zeroed(beta, keep)
    outs = []
    for start, stop, resets in _segments(call.layout.starts, value.shape[2]):
        if resets is not None:
            state = torch.where(resets[:, None, None, None], state.new_zeros(()), state)
        at = slice(start, stop)
        out, state = call.function(
            query[:, :, at],
            key[:, :, at],
            value[:, :, at],
            log_decay=None if log_decay is None else log_decay[:, :, at],
            beta=None if beta is None else beta[:, :, at],
            scale=call.scale,
            initial_state=state,
            options=call.options,
        )
        outs.append(out)
    if not outs:
        # no tokens: nothing to put out, and the state stays
        return call.options.finish(value).to(dtype), state.clone()
    joined = outs[0] if len(outs) == 1 else torch.cat(outs, 2)
    return call.options.finish(joined).to(dtype), state


def _zeroed(x: Tensor, keep: Tensor | None) -> Tensor:
    """Return x, (B, heads, L) or (B, heads, L, width), with padding set to 0."""
    if keep is None:
        return x
    real = keep[:, None, :] if x.dim() == 3 else keep[:, None, :, None]
    return torch.where(real, x, x.new_zeros(()))


def _segments(starts: Tensor | None, length: int) -> list[tuple[int, int, Tensor | None]]:
    """Cut where any sample begins a document: [start, stop) and which samples (B,) begin there."""
    if starts is None or not length:
        return [(0, length, None)] if length else []
    at = starts.any(0).nonzero()[:, 0].tolist()
    edges = [*dict.fromkeys([0, *at]), length]
    return [(start, stop, starts[:, start]) for start, stop in itertools.pairwise(edges)]


def _resolve(variant: Variant | str) -> Variant:
    if variant == AUTO:
        raise ArgumentError("variant must be named, 'auto' chooses among softmax variants only")
    if torch.compiler.is_compiling():
        from attnkit.choice.graphs import variant_while_compiling

        found = variant_while_compiling(variant) if isinstance(variant, str) else variant
    else:
        (found,) = resolve(variant)
    if found.family != "recurrence":
        raise ArgumentError(
            f"variant must be of family 'recurrence', {found.name!r} is of {found.family!r}"
        )
    return found


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor | None,
    beta: Tensor | None,
    scale: float | None,
    mask: Mask,
) -> None:
    tensors = {"query": query, "key": key, "value": value}
    validation.check_tensors(tensors, rank=4, letters="(B, heads, length, width)")
    validation.check_same(tensors, "batch size", 0)
    validation.check_same(tensors, "length", 2)
    validation.check_same({"query": query, "key": key}, "number of groups", 1)
    validation.check_same({"query": query, "key": key}, "head_dim", 3)
    validation.check_groups(value, key)
    validation.check_mask(mask)
    validation.check_number("scale", scale)
    if log_decay is not None:
        head = tuple(value.shape[:3])
        validation.check_gate("log_decay", log_decay, value, (head, (*head, query.shape[3])))
    if beta is not None:
        validation.check_gate("beta", beta, value, (tuple(value.shape[:3]),))


def _check_state(state: object, shape: tuple[int, ...], wide: torch.dtype, value: Tensor) -> None:
    if not isinstance(state, torch.Tensor):
        raise ArgumentError(f"initial_state must be a tensor or None, got {state!r}")
    if tuple(state.shape) != shape:
        raise ShapeError(f"initial_state must be {shape}, got {tuple(state.shape)}")
    if state.dtype not in (torch.float32, torch.float64) or state.dtype.itemsize < wide.itemsize:
        raise DtypeError(
            f"initial_state must be {validation.dtype_name(wide)} or wider for "
            f"{validation.dtype_name(value.dtype)} inputs, got {validation.dtype_name(state.dtype)}"
        )
    if state.device != value.device:
        raise DeviceError(
            f"initial_state must be on the device of value, got {state.device} and {value.device}"
        )


def problem_of_recurrence(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor | None,
    beta: Tensor | None,
    scale: float | None,
    mask: Mask,
    state: Tensor,
) -> Problem:
    """Return the problem that `recurrence` solves with these arguments."""
    given = [query, key, value, state, *(each for each in (log_decay, beta) if each is not None)]
    return Problem(
        family="recurrence",
        device=value.device.type,
        dtype=validation.dtype_name(value.dtype),
        batch=value.shape[0] or 1,
        heads=value.shape[1],
        kv_heads=key.shape[1],
        query_length=value.shape[2] or 1,
        key_length=value.shape[2] or 1,
        head_dim=query.shape[3],
        value_head_dim=value.shape[3],
        causal=True,
        mask_parts=mask.parts,
        scale=scale is not None and scale != 1.0,
        decay="none" if log_decay is None else "head" if log_decay.dim() == 3 else "channel",
        beta=beta is not None,
        state=True,
        gradients=torch.is_grad_enabled() and any(each.requires_grad for each in given),
        compiling=torch.compiler.is_compiling(),
    )
