"""Every promise has a wrong variant that breaks it; what is promised and refused is missing."""

from __future__ import annotations

import importlib
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

import attnkit
import attnkit_contracts
from attnkit.errors import UnsupportedError
from attnkit.promises import Promises
from attnkit_contracts.running.runner import report_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

right: Any = importlib.import_module("correct_softmax")

BROKEN = {
    "causal": "leak_at_one_position",
    "bidirectional": "window_on_one_side",
    "masks": "dense_ignored",
    "needs": "window_not_needed",
    "state": "recurrence_state_not_carried",
    "reorder": "state_reordered_by_nothing",
    "truncate": "cut_too_little",
    "gradients": "wrong_gradient",
    "dropout": "dropout_ignored",
    "dtypes": "output_not_cast",
    "devices": "on_the_current_device",
    "deterministic": "nondeterministic",
    "compile": "breaks_the_graph",
    "transforms": "transformed_carelessly_vmap",
    "stops_nan": "nan_passes",
    "memory": "square_memory",
    "time": "square_time",
    "speed": "computes_six_times",
    "heads": "heads_in_silence",
    "gqa": "heads_tiled",
    "value_width": "value_as_wide_as_key",
    "scale": "scale_twice",
    "cross": "upper_left_causal",
    "bias": "bias_scaled",
    "softcap": "softcap_ignored",
    "sinks": "sink_scaled",
    "weights": "layer_weights_not_normalised",
    "decay": "recurrence_decay_after_update",
    "beta": "recurrence_beta_ignored",
    "capacity": "routing_capacityignored",
}
"""A wrong variant for every promise; `test_kill_matrix` has each of them caught."""


def test_every_promise_has_a_wrong_variant_that_breaks_it(mutants: tuple[Any, ...]) -> None:
    fields = Promises.model_fields
    known = {each.variant.name.removeprefix("mutant_"): each.variant for each in mutants}

    assert set(BROKEN) == set(fields)
    for promise, name in BROKEN.items():
        made = known[name]
        claims = [made.promises, *(each.promises for each in made.implementations)]
        assert any(getattr(each, promise) != fields[promise].default for each in claims), promise


# a promise that is refused


def refusing(feature: str, asked: Callable[[Any], bool]) -> Callable[..., torch.Tensor]:
    def picky(query: Any, key: Any, value: Any, **given: Any) -> torch.Tensor:
        if asked(SimpleNamespace(query=query, key=key, value=value, **given)):
            raise UnsupportedError(f"{feature}: not today")
        out: torch.Tensor = right.by_the_largest(query, key, value, **given)
        return out

    return picky


ASKED: dict[str, Callable[[Any], bool]] = {
    "causal": lambda call: call.mask.is_causal,
    "bidirectional": lambda call: not call.mask.is_causal,
    "cross": lambda call: call.query.shape[2] != call.key.shape[2],
    "gqa": lambda call: call.query.shape[1] != call.key.shape[1],
    "value_width": lambda call: call.query.shape[3] != call.value.shape[3],
    "bias": lambda call: call.bias is not None,
    "scale": lambda call: call.scale != call.query.shape[3] ** -0.5,
    "softcap": lambda call: call.softcap is not None,
    "sinks": lambda call: call.sinks is not None,
    "gradients": lambda call: call.query.requires_grad,
    "window": lambda call: "window" in call.mask.parts,
    "documents": lambda call: "documents" in call.mask.parts,
}


def missing(function: Callable[..., torch.Tensor]) -> tuple[str, ...]:
    """Return what a report of one named implementation says to be missing."""
    variant = right.variant_of(function)
    with attnkit.register(variant):
        planned = attnkit_contracts.plan(variant, dtypes=["float32"], implementations=["own"])
        required = tuple(each for each in planned if each.check.required)
        records = tuple(each.run(explain=False) for each in required)
        report = report_of(
            required, records, asked=(variant.name,), tier="fast", device="cpu", seed=0
        )
    assert not report.failures()
    return report.header.required_missing


@pytest.mark.parametrize("feature", ASKED)
def test_a_promise_that_is_refused_leaves_a_run_of_one_implementation_red(feature: str) -> None:
    assert missing(refusing(feature, ASKED[feature])) != ()


def test_a_combination_that_is_refused_is_no_promise() -> None:
    def both(call: Any) -> bool:
        return call.bias is not None and call.softcap is not None

    assert missing(refusing("bias beside a cap", both)) == ()


# a refusal by name


@pytest.mark.parametrize(
    ("message", "is_by_name"),
    [("no", False), ("sorry, not today", False), ("mask: padding is not promised", True)],
)
def test_a_refusal_names_what_it_refuses(message: str, *, is_by_name: bool) -> None:
    def unwilling(query: Any, key: Any, value: Any, **given: Any) -> torch.Tensor:
        if "padding" in given["mask"].parts:
            raise UnsupportedError(message)
        out: torch.Tensor = right.by_the_largest(query, key, value, **given)
        return out

    # of the choice, which promises less than the function: what refuses is the function
    made = right.variant_of(unwilling, dtypes=("float32",))
    variant = replace(made, promises=made.promises.model_copy(update={"masks": ("dense",)}))
    with attnkit.register(variant):
        planned = attnkit_contracts.plan(variant, implementations=["auto"])
        record = next(each for each in planned if "S10.masks[part=padding]" in each.id).run()

    assert (record.status == "passed") == is_by_name, record.reason
