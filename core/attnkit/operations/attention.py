"""`attention`: one call for every softmax variant.

The arguments are checked once per signature (shapes, dtypes, devices and which options are
given), the implementation is chosen once per signature, and both are remembered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from attnkit.choice.decision import AUTO, Chosen
from attnkit.choice.front import choose
from attnkit.choice.outputs import check_output
from attnkit.choice.transforms import transforms
from attnkit.hosts.protocol import Call
from attnkit.interface import SoftmaxFunction, Variant
from attnkit.masks.constructors import Mask, Sizes, full
from attnkit.masks.padded_tokens import hide_padding
from attnkit.operations import arguments as validation
from attnkit.problem import SoftmaxProblem
from attnkit.registry.registry import default


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Mask = full(),
    bias: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    dropout_p: float = 0.0,
    variant: Variant | str = AUTO,
    implementation: str = AUTO,
    fallback: Sequence[str] = (),
) -> Tensor:
    """Weigh the values by a softmax over query times key.

        logits[i, j] = cap(scale * query[i] . key[j]) + bias[i, j], -inf where masked
        out[i] = sum_j softmax_j(logits[i, :], sinks) * value[j]

    Query head h reads key/value head h // (H // Hkv). Query i stands at key position
    i + S - L. A row that sees no key is zero and has zero gradients.

    Args:
        query: (B, H, L, E), floating.
        key: (B, Hkv, S, E), dtype and device of ``query``; Hkv divides H.
        value: (B, Hkv, S, Ev), dtype and device of ``query``.
        mask: Who may look at what, see `attnkit.masks.constructors`.
        bias: Floating, broadcastable to (B, H, L, S); added after the cap.
        scale: Dimensionless; None means ``E ** -0.5``.
        softcap: ``cap(x) = softcap * tanh(x / softcap)``; None caps nothing.
        sinks: (H,), one extra logit per query head, in the denominator only.
        dropout_p: Share of probabilities dropped, the kept ones times 1 / (1 - dropout_p);
            give it in training only.
        variant: A variant or its name; ``auto`` for attnkit's own that compute exactly this.
        implementation: Exactly this one, or ``auto`` for the cheapest that can.
        fallback: Implementations to try, in this order, if ``implementation`` cannot.

    Returns:
        (B, H, L, Ev) in the dtype of ``query``.

    Raises:
        ShapeError: Two shapes disagree; the message prints both.
        DtypeError: Not one floating dtype.
        DeviceError: Tensors on several devices.
        MaskError: The mask does not fit, or is not a mask.
        ArgumentError: Another argument has a value that nobody accepts.
        UnsupportedError: Nothing that was asked for can honour the call; with every reason.
        ImplementationError: What ran returned something else than (B, H, L, Ev) of ``query``'s
            dtype, on its device.

    Note:
        Finite values at masked places reach neither outputs nor gradients. NaN and inf there
        are stopped where `padding` or `left_padding` hides them.

    Source: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, eq. 1.
    """
    call = Call(query, key, value, mask, bias, scale, softcap, sinks, dropout_p)
    function: SoftmaxFunction
    if torch.compiler.is_compiling():
        _check(call)
        function = _checking(call, choose(variant, _problem(call), implementation, fallback))
    else:
        function = _remembered(call, variant, implementation, fallback)
    if mask.parts:
        mask.check(sizes_of(call))
        key, value = hide_padding(mask, key, value)
    return _run(function, call, key, value, query.device.type)


def answer(
    call: Call, variant: Variant, implementation: str = AUTO, fallback: Sequence[str] = ()
) -> Tensor:
    """Do what `attention` does for a call of a swapped site, where every microsecond counts.

    What a signature cannot tell is not looked at again: a host that makes a mask answers for its
    contents, and NaN at places that its tensors hide is stopped no more than in the host itself.
    """
    if torch.compiler.is_compiling():
        return attention(
            **call.arguments(), variant=variant, implementation=implementation, fallback=fallback
        )
    function = _remembered(call, variant, implementation, fallback)
    # `device.type` would cost more than all the rest of this
    kind = "cpu" if call.query.is_cpu else call.query.device.type
    return _run(function, call, call.key, call.value, kind)


def problem_of(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Mask = full(),
    bias: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    dropout_p: float = 0.0,
) -> SoftmaxProblem:
    """Return the problem that `attention` would solve with these arguments, checked."""
    call = Call(query, key, value, mask, bias, scale, softcap, sinks, dropout_p)
    _check(call)
    return _problem(call)


def _run(function: Any, call: Call, key: Tensor, value: Tensor, device: str) -> Tensor:
    query, scale, bias = call.query, call.scale, call.bias
    if torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            return _run(function, call, key, value, device)
    if scale == 0.0:
        # kernels multiply by it inside of a product, where torch's then read what was never
        # written, or give NaN
        query, scale = query * 0.0, 1.0
    if bias is not None and bias.dim() < 4:
        bias = bias[(None,) * (4 - bias.dim())]
    out: Tensor = function(
        query,
        key,
        value,
        mask=call.mask,
        bias=bias,
        scale=query.shape[3] ** -0.5 if scale is None else scale,
        softcap=call.softcap,
        sinks=call.sinks,
        dropout_p=call.dropout_p,
    )
    return out


def _remembered(
    call: Call, variant: Variant | str, implementation: str, fallback: Sequence[str]
) -> SoftmaxFunction:
    """Check the call and choose for it, once per signature."""
    try:
        signature = _signature(call, variant, implementation, fallback)
        remembered = default().remembered
        found = remembered.functions.get(signature)
    except (AttributeError, TypeError, RuntimeError):
        # something is no tensor or one without a shape, no mask or not hashable: the check says
        # what
        _check(call)
        raise
    if found is not None:
        function: SoftmaxFunction
        function, chosen = found
        if chosen.lease is None or chosen.lease.lasts():
            return function
    _check(call)
    chosen = choose(variant, _problem(call), implementation, fallback)
    checking = _checking(call, chosen)

    def first(*tensors: Tensor, **rules: Any) -> Tensor:
        out = checking(*tensors, **rules)
        if chosen.lasting:
            # the variant with it, by whose identity it is found
            remembered.keep(remembered.functions, signature, (_function(call, chosen), chosen))
        return out

    return first


def _checking(call: Call, chosen: Chosen) -> SoftmaxFunction:
    """Return what runs, and has its output looked at."""
    function = _function(call, chosen)

    def checking(*tensors: Tensor, **rules: Any) -> Tensor:
        out = function(*tensors, **rules)
        expected = (*call.query.shape[:3], call.value.shape[3])
        check_output(chosen.key, "(B, H, L, Ev)", out, expected, call.query)
        return out

    return checking


def _function(call: Call, chosen: Chosen) -> SoftmaxFunction:
    """Return what runs; what has no numbers is chosen for too, since it may be refused."""
    is_empty = 0 in call.query.shape or 0 in call.value.shape
    return _nothing if is_empty else chosen.function


def _signature(
    call: Call, variant: Variant | str, implementation: str, fallback: Sequence[str]
) -> object:
    query, key, value, bias, sinks = call.query, call.key, call.value, call.bias, call.sinks
    return (
        # by identity: the entry keeps its variant alive, so the number stays its own
        variant if isinstance(variant, str) else id(variant),
        implementation,
        tuple(fallback),
        query.shape,
        key.shape,
        value.shape,
        query.dtype,
        key.dtype,
        value.dtype,
        query.device,
        key.device,
        value.device,
        call.mask.key,
        call.scale,
        call.softcap,
        call.dropout_p,
        None if bias is None else (bias.shape, bias.dtype, bias.device),
        None if sinks is None else (sinks.shape, sinks.dtype, sinks.device),
        torch.is_grad_enabled() and _is_tracked(call),
        torch.is_inference_mode_enabled(),
        transforms(),
    )


def _is_tracked(call: Call) -> bool:
    bias, sinks = call.bias, call.sinks
    return (
        call.query.requires_grad
        or call.key.requires_grad
        or call.value.requires_grad
        or (bias is not None and bias.requires_grad)
        or (sinks is not None and sinks.requires_grad)
    )


def _check(call: Call) -> None:
    query, key, value = call.query, call.key, call.value
    tensors = {"query": query, "key": key, "value": value}
    validation.check_tensors(tensors, rank=4, letters="(B, heads, length, width)")
    validation.check_same(tensors, "batch size", 0)
    validation.check_same({"key": key, "value": value}, "number of heads", 1)
    validation.check_same({"key": key, "value": value}, "length", 2)
    validation.check_same({"query": query, "key": key}, "head_dim", 3)
    validation.check_heads(query, key)
    validation.check_mask(call.mask)
    call.mask.check(sizes_of(call))
    validation.check_number("scale", call.scale)
    validation.check_number("softcap", call.softcap, above=0.0)
    validation.check_share("dropout_p", call.dropout_p)
    if call.bias is not None:
        validation.check_bias(call.bias, query, key)
    if call.sinks is not None:
        validation.check_sinks(call.sinks, query)


def sizes_of(call: Call) -> Sizes:
    """Return B, H, L, S of a call."""
    batch, heads, length, _ = call.query.shape
    return Sizes(batch, heads, length, call.key.shape[2])


def _nothing(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    bias: Tensor | None,
    sinks: Tensor | None,
    **_: object,
) -> Tensor:
    """Return zeros (B, H, L, Ev) that give every input a zero gradient."""
    zero = query[..., :0].sum() + key[..., :0].sum() + value[..., :0].sum()
    for extra in (bias, sinks):
        if extra is not None:
            zero = zero + extra[..., :0].sum().to(query.dtype)
    return query.new_zeros(*query.shape[:3], value.shape[3]) + zero


def _problem(call: Call) -> SoftmaxProblem:
    query, key, value, mask, scale = call.query, call.key, call.value, call.mask, call.scale
    return SoftmaxProblem(
        device=query.device.type,
        dtype=validation.dtype_name(query.dtype),
        batch=query.shape[0] or 1,
        heads=query.shape[1],
        kv_heads=key.shape[1],
        query_length=query.shape[2] or 1,
        key_length=key.shape[2] or 1,
        head_dim=query.shape[3],
        value_head_dim=value.shape[3],
        causal=mask.is_causal,
        mask_parts=mask.parts,
        window=mask.window,
        bias=call.bias is not None,
        scale=scale is not None and scale != query.shape[3] ** -0.5,
        softcap=call.softcap is not None,
        sinks=call.sinks is not None,
        dropout=call.dropout_p > 0.0,
        gradients=torch.is_grad_enabled() and _is_tracked(call),
        compiling=torch.compiler.is_compiling(),
        transforms=transforms(),
    )
