"""`recurrence`: one call for every variant that carries a state instead of a cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attnkit.choice.decision import AUTO, Chosen, resolve
from attnkit.choice.front import choose
from attnkit.errors import ArgumentError, DeviceError, DtypeError, ShapeError
from attnkit.families import RECURRENCE
from attnkit.interface import Options, Variant
from attnkit.masks.codes import encode
from attnkit.masks.constructors import Mask, full
from attnkit.operations import arguments as validation
from attnkit.operations.recurrence_run import Given, problem_of_recurrence, run


def recurrence(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    variant: Variant | str,
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
        query: (B, G, L, E), floating.
        key: (B, G, L, E).
        value: (B, H, L, Ev); G divides H.
        variant: A variant of the family ``recurrence``, or its name.
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
    batch, heads, _, value_width = value.shape
    wide = torch.promote_types(value.dtype, torch.float32)
    shape = (batch, heads, *options.state_shape(query.shape[3], value_width))
    if initial_state is None:
        initial_state = value.new_zeros(shape, dtype=wide)
    _check_state(initial_state, shape, wide, value)
    given = Given(query, key, value, log_decay, beta, initial_state)
    if torch.compiler.is_compiling():
        problem = problem_of_recurrence(given, scale, mask)
        chosen = choose(found, problem, implementation, fallback)
        return _in_a_graph(chosen, options, given, (scale, seen), mask)
    return run(
        found,
        given,
        scale=scale,
        mask=mask,
        seen=seen,
        options=options,
        implementation=implementation,
        fallback=fallback,
    )


def _in_a_graph(
    chosen: Chosen, options: Options, tensors: Given, numbers: tuple[float | None, int], mask: Mask
) -> tuple[Tensor, Tensor]:
    """Make one operator of a call, which reads the mask when it runs."""
    # not on top: it registers operators, and loads what traces
    from attnkit.choice.graphs import settings_while_compiling, settled
    from attnkit.operations.graph_operator import operator

    told = tuple((field, settled(given)) for field, given in options.__dict__.items())
    settings = settings_while_compiling(chosen.variant.name, told, chosen.name)
    made: tuple[Tensor, Tensor] = operator(settings, *tensors, *numbers, *encode(mask))
    return made


def _resolve(variant: Variant | str) -> Variant:
    if variant == AUTO:
        raise ArgumentError("variant must be named, 'auto' chooses among softmax variants only")
    if torch.compiler.is_compiling():
        from attnkit.choice.graphs import variant_while_compiling

        found = variant_while_compiling(variant) if isinstance(variant, str) else variant
    else:
        (found,) = resolve(variant)
    if found.family != RECURRENCE.name:
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
