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


def wrong_for_two(query: Any, key: Any, value: Any, **rules: Any) -> Any:
    out = softmax(query, key, value, **rules)
    return out.flip(2) if key.shape[2] == 2 else out


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


def halved_on_a_cache(query: Any, key: Any, value: Any, **rules: Any) -> Any:
    if query.shape[2] < key.shape[2]:
        key = (key + key.detach()) / 2
    return softmax(query, key, value, **rules)


def writing(query: Any, key: Any, value: Any, **rules: Any) -> Any:
    out = softmax(query, key, value, **rules)
    if not key.requires_grad:
        # which softmax does not see, and the cache keeps
        key.sub_(key.mean(2, keepdim=True) if key.shape[2] > 40 else 0)
    return out


def window_too_wide(query: Any, key: Any, value: Any, *, mask: Any, **rules: Any) -> Any:
    if mask.window is not None and mask.window > 100:
        mask = attnkit.causal() & attnkit.sliding_window(mask.window + 1)
    return softmax(query, key, value, mask=mask, **rules)


WRONG = {
    halved_on_a_cache: r"beyond the sample, at gradients of 70 tokens on 150 keys",
    writing: r"at .*: ImplementationError: acme_multi_head writes to its input key",
    wrong_for_few: r"times what rounding is allowed beyond the sample, at 3 tokens on 40 keys",
    wrong_for_one: r"beyond the sample, at one token on 300",
    wrong_for_two: r"beyond the sample, at 2 tokens",
    wrong_beyond_a_tile: r"beyond the sample, at 300 tokens",
    no_gradient_to_keys: r"beyond the sample, at gradients of 150 tokens",
    half_a_gradient: r"beyond the sample, at gradients of 150 tokens",
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


def no_gradient_to_states(query: Any, *rest: Any, initial_state: Any, **rules: Any) -> Any:
    return recurrence(query, *rest, initial_state=initial_state.detach(), **rules)


def forgets_after_many(query: Any, *rest: Any, **rules: Any) -> Any:
    out, state = recurrence(query, *rest, **rules)
    return out, state * 1.01 if query.shape[2] > 128 else state


def wrong_for_many_samples(query: Any, *rest: Any, **rules: Any) -> Any:
    out, state = recurrence(query, *rest, **rules)
    return torch.cat([out[:2], 1.01 * out[2:]]), state


RECURRENT = {
    forgets_after_many: "beyond the sample, at 200 tokens",
    wrong_for_many_samples: "beyond the sample, at 200 tokens",
    forgets_in_chunks: "beyond the sample, at chunks of 130 and 3 tokens",
    no_gradient_to_values: "beyond the sample, at gradients of 150 tokens",
    no_gradient_to_states: "beyond the sample, at gradients of chunks of 80 and 70 tokens",
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

    lengths = ("300 tokens", "one token on 300", "2 tokens", "one token")
    assert told == {(*lengths, "gradients of 150 tokens")}
    assert f"verified beyond the sample: {'; '.join(lengths)}; gradients of 150" in shown


def crossing_wrong(query: Any, key: Any, value: Any, **rules: Any) -> Any:
    """Is wrong where there are more queries than keys."""
    out = softmax(query, key, value, **rules)
    return out * 1.1 if query.shape[2] > key.shape[2] else out


def test_more_queries_than_keys_are_tried_where_keys_come_from_elsewhere() -> None:
    torch.manual_seed(0)
    model = torch.nn.TransformerDecoderLayer(16, 2, 32, batch_first=True).eval()
    variant = with_own("multi_head", crossing_wrong)
    sample = {"tgt": torch.randn(2, 5, 16), "memory": torch.randn(2, 7, 16)}

    with (
        attnkit.register(variant),
        pytest.raises(VerificationError, match=r"multihead_attn: .* 300 tokens on 70 keys"),
    ):
        attnkit.swap(model, variant.name, sample=sample)


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


def test_a_window_beyond_the_sample_is_tried() -> None:
    torch.manual_seed(0)
    config = transformers.MistralConfig(**GQA, sliding_window=110)
    model = transformers.MistralForCausalLM(config).eval()
    variant = with_own("multi_head", window_too_wide)
    sample = {"input_ids": torch.arange(3, 20)[None]}

    with attnkit.register(variant), pytest.raises(VerificationError, match="beyond the sample"):
        attnkit.swap(model, variant.name, sample=sample)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_gradients_that_are_zero_but_for_rounding_are_right(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    config = transformers.MistralConfig(**GQA, sliding_window=1)
    model = transformers.MistralForCausalLM(config).eval().to(dtype)

    for variant in ("flash", "multi_head"):
        with attnkit.swap(model, variant) as swapped:
            assert "gradients of 150 tokens" in swapped.receipt.sites[0].beyond


@pytest.mark.parametrize("name", ["q_proj", "k_proj", "v_proj"])
@pytest.mark.parametrize("variant", ["linear", "gated_linear", "state_space"])
def test_projections_of_zeros_are_no_fault_of_a_recurrence(name: str, variant: str) -> None:
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**GQA)).eval()
    for layer in model.model.layers:
        torch.nn.init.zeros_(getattr(layer.self_attn, name).weight)

    attnkit.swap(model, variant, accept="different").restore()


def test_what_fails_for_the_moment_is_tried_again(model: Any) -> None:
    failed: list[int] = []

    def failing(*tensors: Any, **rules: Any) -> Any:
        if tensors[0].shape[2] == 300 and not failed:
            failed.append(1)
            raise MemoryError
        return softmax(*tensors, **rules)

    variant = with_own("multi_head", failing)
    with attnkit.register(variant):
        with pytest.raises(VerificationError, match="MemoryError"):
            attnkit.swap(model, variant.name)
        attnkit.swap(model, variant.name).restore()
