"""What is right on the sample and wrong beyond it: a swap tries the calls that will come."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from tiny_models import GQA

import attnkit
from attnkit.errors import UnsupportedError, VerificationError
from attnkit.reference import recurrence, softmax

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**GQA)).eval()


def with_own(name: str, function: Callable[..., Any]) -> attnkit.Variant:
    """Return a variant whose cheapest implementation is a function."""
    right = attnkit.get_variant(name)
    own = dataclasses.replace(
        right.implementations[0], name="own", function=function, cost=lambda _: 0.0
    )
    implementations = (right.implementations[0], own)
    return dataclasses.replace(right, name=f"acme_{name}", implementations=implementations)


def wrong_for_few(query: Any, key: Any, value: Any, **rules: Any) -> Any:
    out = softmax(query, key, value, **rules)
    return out * 1.1 if 1 < query.shape[2] < key.shape[2] else out


def wrong_for_one(query: Any, key: Any, value: Any, **rules: Any) -> Any:
    out = softmax(query, key, value, **rules)
    return out * 1.1 if query.shape[2] == 1 and key.shape[2] > 32 else out


def wrong_beyond_a_tile(query: Any, key: Any, value: Any, **rules: Any) -> Any:
    out = softmax(query, key, value, **rules)
    return torch.cat([out[:, :, :256], 1.1 * out[:, :, 256:]], 2)


def no_gradient_to_keys(query: Any, key: Any, value: Any, **rules: Any) -> Any:
    return softmax(query, key.detach(), value, **rules)


def half_a_gradient(query: Any, key: Any, value: Any, **rules: Any) -> Any:
    return softmax(query, key, (value + value.detach()) / 2, **rules)


def fails_for_few(query: Any, key: Any, value: Any, **rules: Any) -> Any:
    assert query.shape[2] in (1, key.shape[2]), "not written yet"
    return softmax(query, key, value, **rules)


WRONG = {
    wrong_for_few: r"times what rounding is allowed beyond the sample, at 3 tokens on 40 keys",
    wrong_for_one: r"beyond the sample, at one token on 65",
    wrong_beyond_a_tile: r"beyond the sample, at 300 tokens",
    no_gradient_to_keys: r"beyond the sample, at gradients over 80 tokens",
    half_a_gradient: r"beyond the sample, at gradients over 80 tokens",
    fails_for_few: r"at 3 tokens on 40 keys: AssertionError: not written yet",
}


@pytest.mark.parametrize("function", WRONG)
@pytest.mark.parametrize("relation", ["exact", "different"])
def test_what_is_wrong_beyond_the_sample_is_refused(
    model: Any, function: Callable[..., Any], relation: Any
) -> None:
    variant = dataclasses.replace(with_own("multi_head", function), relation=relation)
    told = rf"layers.0.self_attn: acme_multi_head.own .*{WRONG[function]}"

    with attnkit.register(variant), pytest.raises(VerificationError, match=told):
        attnkit.swap(model, variant.name, accept="different")


def forgets_in_chunks(query: Any, *rest: Any, initial_state: Any, **rules: Any) -> Any:
    if 1 < query.shape[2] < 16:
        initial_state = torch.zeros_like(initial_state)
    return recurrence(query, *rest, initial_state=initial_state, **rules)


def no_gradient_to_values(query: Any, key: Any, value: Any, **rules: Any) -> Any:
    return recurrence(query, key, value.detach(), **rules)


RECURRENT = {
    forgets_in_chunks: "beyond the sample, at chunks of 100 and 3 tokens",
    no_gradient_to_values: "beyond the sample, at gradients over 80 tokens",
}


@pytest.mark.parametrize("function", RECURRENT)
def test_a_recurrence_that_is_wrong_beyond_the_sample_is_refused(
    model: Any, function: Callable[..., Any]
) -> None:
    variant = with_own("gated_linear", function)

    with attnkit.register(variant), pytest.raises(VerificationError, match=RECURRENT[function]):
        attnkit.swap(model, variant.name, accept="different")


def test_the_receipt_says_what_was_tried_and_what_is_refused_is_no_error(model: Any) -> None:
    def whole_only(query: Any, key: Any, value: Any, **rules: Any) -> Any:
        if 1 < query.shape[2] < key.shape[2]:
            raise UnsupportedError("takes no chunks")
        return softmax(query, key, value, **rules)

    variant = with_own("multi_head", whole_only)
    with attnkit.register(variant), attnkit.swap(model, variant.name) as swapped:
        told = {site.beyond for site in swapped.receipt.sites}
        shown = str(swapped.receipt)

    assert told == {("300 tokens", "one token on 65", "gradients over 80 tokens")}
    assert "verified beyond the sample: 300 tokens; one token on 65; gradients" in shown


def test_the_same_question_is_asked_once(model: Any) -> None:
    calls = []

    def counted(*tensors: Any, **rules: Any) -> Any:
        calls.append(tensors[0].shape[2])
        return softmax(*tensors, **rules)

    variant = with_own("multi_head", counted)
    with attnkit.register(variant):
        for _ in range(2):
            attnkit.swap(model, variant.name).restore()

    assert calls.count(300) == 1
