"""Makes a variant of any function, so that the suite can judge it: torch's, a kernel's, a model's.

    variant = adapt(
        "torch.nn.functional:scaled_dot_product_attention",
        promises="causal, bidirectional, cross, gqa, scale, dense, padding, gradients, float32",
        causal_argument="is_causal",
        causal_corner="upper_left",
        gqa_argument="enable_gqa",
    )
    attnkit_contracts.check(variant, implementations=["function"])

What is declared is how the function is called, never what it may get wrong: the adapter lays
tensors out, writes masks in the function's convention, and passes everything else as it is. An
argument that has no declared name cannot be passed; what needs it must not be promised.

`attnkit_contracts.foreign.layers` does the same for layers.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from typing import TYPE_CHECKING, Any, Literal, get_args

from attnkit.errors import ArgumentError, UnsupportedError
from attnkit.interface import Implementation, LayerConfig, Variant
from attnkit.problem import SoftmaxProblem
from attnkit.promises import ALL_DTYPES, ALL_MASK_PARTS, Decay, Device, Promises
from attnkit.registry import registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from attnkit.problem import Problem
    from attnkit_contracts.foreign.function_calls import RecurrenceCall, SoftmaxCall

Layout = Literal["BHLE", "BLHE"]
MaskAs = Literal["bool", "hidden", "additive", "additive_min", "none"]
Corner = Literal["lower_right", "upper_left"]

FUNCTION = "function"
"""Name of the implementation that calls the function."""

NAMES: Mapping[str, str] = {
    "causal": "causal_argument",
    "gqa": "gqa_argument",
    "scale": "scale_argument",
    "softcap": "softcap_argument",
    "sinks": "sinks_argument",
    "bias": "bias_argument",
    "dropout": "dropout_argument",
    "window": "window_argument",
    "mask": "mask_argument",
    "log_decay": "decay_argument",
    "beta": "beta_argument",
    "state": "state_argument",
}
"""What an argument is about, and the option of `adapt` that names it."""


def adapt(
    function: str | Callable[..., Any],
    *,
    promises: Promises | str | Iterable[str],
    family: Literal["softmax", "recurrence"] = "softmax",
    name: str | None = None,
    layout: Layout = "BHLE",
    output_layout: Layout | None = None,
    mask: MaskAs = "bool",
    mask_argument: str | None = "attn_mask",
    causal_argument: str | None = None,
    causal_corner: Corner = "lower_right",
    window_argument: str | None = None,
    gqa_argument: str | None = None,
    scale_argument: str | None = "scale",
    bias_argument: str | None = None,
    softcap_argument: str | None = None,
    sinks_argument: str | None = None,
    dropout_argument: str | None = None,
    decay_argument: str | None = "g",
    beta_argument: str | None = "beta",
    state_argument: str | None = "initial_state",
    own_scale: Literal["none", "width"] = "none",
    always: tuple[str, ...] = (),
    fixed: Mapping[str, Any] | None = None,
) -> Variant:
    """Return a variant that calls a function.

    Args:
        function: ``"package.module:attribute"``, or a callable. A softmax function is called as
            ``function(query, key, value, **named)``, a recurrence returns outputs and final state.
        promises: What it claims: `Promises`, or their names, with mask parts, forms of decay,
            dtypes and devices among them, ``"causal, gqa, padding, float32"``. Without a dtype
            float32 is meant, without a device the CPU.
        family: ``softmax`` or ``recurrence``.
        name: Of the variant; None for the function's.
        layout: Of query, key and value: ``BHLE`` or ``BLHE``.
        output_layout: Of the output; None for ``layout``.
        mask: What it is given for a mask: ``bool`` (True may attend), ``hidden`` (True is shut
            out), ``additive`` (0 or -inf, in the dtype of the query), ``additive_min`` (0 or
            the lowest finite number), or ``none`` at all. A
            function without a mask and without a ``causal_argument`` that promises causal is
            causal by itself.
        mask_argument: Name of its argument for it.
        causal_argument: Name of its flag for causal; None to write causal into the mask.
        causal_corner: What the flag means for L != S. With ``upper_left``, causal calls of
            L != S go through the mask.
        window_argument: Name of its argument for windows, in keys, self included; None to write
            windows into the mask.
        gqa_argument: Name of a flag that is set where Hkv != H; None for a function that sees it.
        scale_argument: Name of its argument for the scale; None for one that takes none. It is
            given in every call, so the function's own default is not judged.
        bias_argument: Name of its argument for a bias; an additive mask takes it otherwise.
        softcap_argument: Name of its argument for a soft cap.
        sinks_argument: Name of its argument for sinks, (H,).
        dropout_argument: Name of its argument for dropout.
        decay_argument: Name of a recurrence's argument for log_decay.
        beta_argument: Name of a recurrence's argument for beta.
        state_argument: Name of a recurrence's argument for the initial state, (B, H, E, Ev).
        own_scale: ``width`` for a recurrence that multiplies queries by E ** -0.5 unasked.
        always: What a call must bring: ``beta`` for a recurrence that cannot do without. A call
            that does not is refused.
        fixed: Further arguments, the same for every call.

    Raises:
        ArgumentError: The declaration contradicts itself, or the name is taken.
    """
    # every declaration, by name
    declared = {key: value for key, value in locals().items() if key != "function"}
    given = parse(promises)
    target = load_target(function)
    if family not in ("softmax", "recurrence"):
        raise ArgumentError(
            f"family must be softmax or recurrence, got {family!r}; a layer goes to adapt_layer"
        )
    _check_layouts(layout, output_layout or layout, mask)
    _check_names(target, declared)
    call = _call_of(family, target, declared, _source(function, declared))
    promised = (
        given.model_copy(update={"state": True, "causal": True})
        if _is_recurrence(family)
        else given
    )
    _check_promises(promised, declared)
    return Variant(
        name=free_name(name, target),
        family=family,
        summary=f"{getattr(target, '__module__', '')}.{plain_name(target)}, as declared.",
        source="a function given to attnkit_contracts.adapt",
        relation="exact" if family == "softmax" else "different",
        promises=promised,
        config=LayerConfig,
        layer=NO_LAYER,
        implementations=(
            Implementation(
                name="reference",
                function=f"attnkit.reference:{family}",
                summary="float64",
                promises=promised.model_copy(update={"dropout": False, "dtypes": ALL_DTYPES}),
                cost=lambda _: 2.0,
            ),
            Implementation(
                name=FUNCTION,
                function=call,
                summary="the function",
                promises=promised,
                cost=lambda _: 1.0,
                refuses=lambda problem: _refusal(problem, declared),
            ),
        ),
    )


NO_LAYER = "attnkit_contracts.foreign.functions:no_layer"
"""The layer of a variant that has none."""


def no_layer(*_: object, **__: object) -> None:
    """Stand for the layer that a function does not have.

    Raises:
        UnsupportedError: Always.
    """
    raise UnsupportedError("a function has no layer: it was given to attnkit_contracts.adapt")


def parse(promises: Promises | str | Iterable[str]) -> Promises:
    """Return promises from their names.

    Raises:
        ArgumentError: A name is neither a promise nor a mask part, decay, dtype or device.
    """
    if isinstance(promises, Promises):
        return promises
    words = re.split(r"[\s,]+", promises.strip()) if isinstance(promises, str) else [*promises]
    found: dict[str, Any] = {}
    lists: dict[str, tuple[str, ...]] = {
        "masks": ALL_MASK_PARTS,
        "dtypes": ALL_DTYPES,
        "devices": get_args(Device),
        "decay": get_args(Decay),
    }
    switches = {key for key, field in Promises.model_fields.items() if field.annotation is bool}
    for word in filter(None, words):
        home = next((key for key, values in lists.items() if word in values), None)
        if home:
            found[home] = (*found.get(home, ()), word)
        elif word in switches:
            found[word] = True
        else:
            known = sorted({*switches, *(each for values in lists.values() for each in values)})
            raise ArgumentError(f"promises must be of {', '.join(known)}, got {word!r}")
    found.setdefault("dtypes", ("float32",))
    found.setdefault("devices", ("cpu",))
    return Promises(**found)


def named_arguments(
    given: Iterable[str], names: Mapping[str, str] = NAMES
) -> dict[str, str | None]:
    """Return options of `adapt`, or of another door, from ``scale=softmax_scale``.

    ``scale=none`` is None: of what takes none.

    Raises:
        ArgumentError: Not such a pair, or there is no such argument.
    """
    found: dict[str, str | None] = {}
    for pair in given:
        what, _, name = pair.partition("=")
        if what not in names or not name:
            raise ArgumentError(
                f"an argument is told as NAME=ITS_NAME with NAME of {', '.join(names)}, "
                f"got {pair!r}"
            )
        found[names[what]] = None if name == "none" else name
    return found


def _is_recurrence(family: str) -> bool:
    return family == "recurrence"


def _check_layouts(layout: str, output_layout: str, mask: str) -> None:
    for what, value, allowed in (
        ("layout", layout, get_args(Layout)),
        ("output_layout", output_layout, get_args(Layout)),
        ("mask", mask, get_args(MaskAs)),
    ):
        if value not in allowed:
            raise ArgumentError(f"{what} must be one of {', '.join(allowed)}, got {value!r}")


def _check_names(target: Callable[..., Any], declared: Mapping[str, Any]) -> None:
    """Refuse the name of an argument that a function does not have, where it can be told."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        # of a function in C
        return
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters):
        return
    names = {each.name for each in parameters}
    defaults = {key: each.default for key, each in inspect.signature(adapt).parameters.items()}
    for option in NAMES.values():
        name = declared[option]
        if name is not None and name != defaults[option] and name not in names:
            raise ArgumentError(
                f"{option}: {plain_name(target)} has no argument {name!r}, it has "
                f"{', '.join(sorted(names))}"
            )


def _check_promises(promises: Promises, declared: Mapping[str, Any]) -> None:
    """Refuse a promise that no declared argument can carry."""
    needed = {
        "softcap": promises.softcap,
        "sinks": promises.sinks,
        "dropout": promises.dropout,
        "scale": promises.scale and not _is_recurrence(declared["family"]),
        "bias": promises.bias and not declared["mask"].startswith("additive"),
        "beta": promises.beta,
        "log_decay": bool({"head", "channel"} & set(promises.decay)),
    }
    for what, wanted in needed.items():
        if wanted and declared[NAMES[what]] is None:
            raise ArgumentError(
                f"{what} is promised, but cannot be passed: name its argument with {NAMES[what]}"
            )
    through_mask = set(promises.masks) - ({"window"} if declared["window_argument"] else set())
    if through_mask and declared["mask"] == "none" and not _is_recurrence(declared["family"]):
        raise ArgumentError(
            f"the mask parts {', '.join(sorted(through_mask))} are promised, but mask='none' "
            "passes no mask"
        )
    if not promises.causal and not promises.bidirectional:
        raise ArgumentError("promises must have causal or bidirectional, or both")


def _refusal(problem: Problem, declared: Mapping[str, Any]) -> str | None:
    """Say why a call cannot be passed on; None where it can."""
    for what in declared["always"]:
        if not getattr(problem, what):
            return f"{what}: the function cannot do without"
    if not isinstance(problem, SoftmaxProblem):
        return None
    if not problem.causal or problem.query_length == problem.key_length:
        return None
    if declared["mask"] == "none" and declared["causal_corner"] == "upper_left":
        return "causal with L != S: the flag is aligned upper-left, and there is no mask"
    return None


def _call_of(
    family: str, target: Callable[..., Any], declared: Mapping[str, Any], source: str | None
) -> SoftmaxCall | RecurrenceCall:
    # torch is imported here: naming a variant's layer must not
    from attnkit_contracts.foreign.function_calls import Convention, RecurrenceCall, SoftmaxCall

    names = {key: declared[option] for key, option in NAMES.items() if declared[option]}
    convention = Convention(
        layout=declared["layout"],
        output_layout=declared["output_layout"] or declared["layout"],
        mask=declared["mask"],
        corner=declared["causal_corner"],
        names=names,
        fixed=dict(declared["fixed"] or {}),
        own_scale=declared["own_scale"],
    )
    kind = RecurrenceCall if _is_recurrence(family) else SoftmaxCall
    return kind(target, convention, source)


def load_target(function: str | Callable[..., Any]) -> Callable[..., Any]:
    """Import what ``"package.module:attribute"`` names; return a callable as it is.

    Raises:
        ArgumentError: It is not there, or cannot be called.
    """
    if not isinstance(function, str):
        return function
    module, _, attribute = function.partition(":")
    if not module or not attribute:
        raise ArgumentError(f"function must be 'package.module:attribute', got {function!r}")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ArgumentError(f"cannot import {function!r}: {error}") from error
    if not callable(found):
        raise ArgumentError(f"{function!r} is not callable")
    loaded: Callable[..., Any] = found
    return loaded


def plain_name(target: Callable[..., Any]) -> str:
    """Return what a callable is called."""
    return str(getattr(target, "__name__", type(target).__name__))


def free_name(name: str | None, target: Callable[..., Any]) -> str:
    """Return the name of a variant of this target.

    Raises:
        ArgumentError: It is no identifier, or taken.
    """
    found = re.sub(r"\W", "_", plain_name(target)) if name is None else name
    if found in registry.default().names():
        raise ArgumentError(f"the name {found!r} is taken by a variant; give another with name=")
    if not found.isidentifier():
        raise ArgumentError(f"name must be an identifier, got {found!r}")
    return found


def _source(function: str | Callable[..., Any], declared: Mapping[str, Any]) -> str | None:
    """Return Python that makes the variant again; None for a function that has no address."""
    return written(adapt, function, declared)


def written(
    door: Callable[..., Any], target: str | Callable[..., Any], declared: Mapping[str, Any]
) -> str | None:
    """Return a call of ``door`` with everything declared that is not its default.

    None where nothing imports the target, or where a value cannot be written down.
    """
    if not isinstance(target, str):
        module, path = getattr(target, "__module__", ""), getattr(target, "__qualname__", "")
        if not module or module == "__main__" or "<" in path or not path:
            return None
        target = f"{module}:{path}"
    said = declared["promises"]
    words = said if isinstance(said, str) else _words(parse(said))
    if parse(words) != parse(said):
        return None
    told = [repr(target), f"promises={words!r}"]
    for key, default in (door.__kwdefaults__ or {}).items():
        if declared[key] != default:
            if not _is_plain(declared[key]):
                return None
            told.append(f"{key}={declared[key]!r}")
    return f"{door.__name__}({', '.join(told)})"


def _is_plain(value: object) -> bool:
    """Return whether Python reads back what it writes."""
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (ValueError, SyntaxError):
        return False


def _words(promises: Promises) -> str:
    """Return the names of promises, as `parse` reads them."""
    words = []
    for key, value in promises:
        if value is True:
            words.append(key)
        elif key in ("masks", "dtypes", "devices", "decay"):
            words += value
    return ", ".join(words)
