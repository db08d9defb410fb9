"""What every recurrence does: its forms agree, cut, padded, in any precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from recurrence_cases import FORMS, NAMES, WITH_DECAY, Form, assert_close

import attnkit
from attnkit.errors import UnsupportedError
from attnkit.masks.constructors import Sizes

every_form = pytest.mark.parametrize("form", FORMS, ids=str)
every_decay = pytest.mark.parametrize("form", WITH_DECAY, ids=str)
every_implementation = pytest.mark.parametrize("name", NAMES)
all_but_the_reference = pytest.mark.parametrize("name", NAMES[1:])


@every_form
@pytest.mark.parametrize("chunk_size", [1, 3, 16, 64, 100])
@pytest.mark.parametrize("length", [1, 7, 64, 150])
def test_chunks_of_every_size_agree_with_the_reference(
    length: int, chunk_size: int, form: Form
) -> None:
    given = form.inputs(length)
    for got, expected in zip(
        form.run(given, "chunked", chunk_size), form.run(given, "reference"), strict=True
    ):
        assert_close(got, expected, torch.float64)


@every_form
@pytest.mark.parametrize("groups", [1, 2, 4])
@all_but_the_reference
def test_gradients_agree_with_those_of_the_reference(name: str, groups: int, form: Form) -> None:
    given = form.inputs(23, groups)
    for got, expected in zip(
        form.gradients(given, name, 5), form.gradients(given, "reference"), strict=True
    ):
        assert_close(got, expected, torch.float64)


@every_form
@every_implementation
@pytest.mark.parametrize("cut", [0, 1, 4, 22, 23])
def test_a_sequence_cut_in_two_is_the_whole(name: str, cut: int, form: Form) -> None:
    *tokens, state = form.inputs(23)
    whole, last = form.run((*tokens, state), name, 4)
    first, middle = form.run((*(x[:, :, :cut] for x in tokens), state), name, 4)
    second, end = form.run((*(x[:, :, cut:] for x in tokens), middle), name, 4)
    assert_close(torch.cat((first, second), 2), whole, torch.float64)
    assert_close(end, last, torch.float64)


@every_decay
@all_but_the_reference
@pytest.mark.parametrize("strength", [1e-4, 30.0, 1e4])
def test_weak_and_strong_decays_keep_full_precision(name: str, strength: float, form: Form) -> None:
    given = form.inputs(150, strength=strength, dtype=torch.float32)
    # strong decays between weak ones: what comes after them must not lose digits
    given[3][:, :, 1::2] *= 1e-3
    wide = tuple(tensor.double() for tensor in given)
    for got, expected in zip(form.run(given, name), form.run(wide, "reference"), strict=True):
        assert_close(got, expected, torch.float32)
    for got, expected in zip(
        form.gradients(given, name), form.gradients(wide, "reference"), strict=True
    ):
        assert_close(got, expected, torch.float32)


@every_decay
@every_implementation
def test_a_decay_to_nothing_forgets_the_past(name: str, form: Form) -> None:
    given = form.inputs(20)
    given[3][:, :, [0, 11]] = float("-inf")
    out, last = form.run(given, name, 8)
    after = (*(x[:, :, 11:] for x in given[:4]), torch.zeros_like(given[4]))
    expected, expected_last = form.run(after, name, 8)
    assert_close(out[:, :, 11:], expected, torch.float64)
    assert_close(last, expected_last, torch.float64)
    assert all(grad.isfinite().all() for grad in form.gradients(given, name, 8))


@every_form
@every_implementation
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_rounds_the_output_and_nothing_else(
    name: str, dtype: torch.dtype, form: Form
) -> None:
    given = form.inputs(50, dtype=dtype)
    out, state = form.run(given, name, 16)
    expected, expected_state = form.run(tuple(tensor.double() for tensor in given), "reference")
    assert out.dtype == dtype
    assert state.dtype == torch.float32
    assert_close(state, expected_state, torch.float32)
    # half a unit of the output's dtype, and the float32 sums
    limit = torch.finfo(dtype).eps / 2 + 64 * torch.finfo(torch.float32).eps
    assert ((out.double() - expected).abs() <= limit * expected.abs().max()).all()


@every_form
@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"beta": torch.ones(2, 4, 5)}, "beta"),
        ({"mask": attnkit.sliding_window(2)}, "sliding_window"),
    ],
)
def test_what_it_does_not_promise_is_refused_by_name(
    arguments: dict[str, Any], word: str, form: Form
) -> None:
    with pytest.raises(UnsupportedError, match=word):
        form.run(form.inputs(5), "auto", **arguments)


@every_form
@every_implementation
def test_inputs_and_the_initial_state_are_not_written_to(name: str, form: Form) -> None:
    given = form.inputs(9)
    before = [tensor.clone() for tensor in given]
    _, state = form.run(given, name, 4)
    state.zero_()
    assert all(torch.equal(now, then) for now, then in zip(given, before, strict=True))


@every_form
@pytest.mark.parametrize("mask", [attnkit.padding([9, 4]), attnkit.left_padding([0, 5])])
@every_implementation
def test_padding_leaves_the_state_as_it_was(name: str, mask: attnkit.Mask, form: Form) -> None:
    *tokens, state = form.inputs(9)
    keep = mask.to_bool(Sizes(2, 1, 9, 9), state.device)[:, 0, 0]  # (B, L)
    out, last = form.run((*tokens, state), name, mask=mask)
    for b in range(2):
        alone = (*(x[b : b + 1, :, keep[b]] for x in tokens), state[b : b + 1])
        expected, expected_last = form.run(alone, name)
        assert_close(out[b : b + 1, :, keep[b]], expected, torch.float64)
        assert_close(last[b : b + 1], expected_last, torch.float64)
