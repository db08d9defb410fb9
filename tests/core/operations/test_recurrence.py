"""`attnkit.recurrence`: what it refuses, and what it makes of masks and states."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from typing import Any

import pytest
import torch
from pydantic import Field
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import attnkit
from attnkit.errors import (
    ArgumentError,
    AttnkitError,
    DeviceError,
    DtypeError,
    MaskError,
    ShapeError,
    UnsupportedError,
)
from attnkit.reference import recurrence as definition

# float32 sums of at most 9 terms of order 1, in a few steps each
CLOSE = {"rtol": 0.0, "atol": 64 * 2.0**-24}


def call(**changes: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Run gated_linear on small inputs; two groups, four heads."""
    torch.manual_seed(0)
    inputs: dict[str, Any] = {
        "query": torch.randn(2, 2, 9, 8),
        "key": torch.randn(2, 2, 9, 8),
        "value": torch.randn(2, 4, 9, 6),
        "log_decay": -torch.rand(2, 4, 9),
    }
    return attnkit.recurrence(**{"variant": "gated_linear", **inputs, **changes})


REFUSED = [
    (dict(query=torch.zeros(2, 9, 8)), ShapeError, r"query must have 4 dimensions.*\(2, 9, 8\)"),
    (dict(value=torch.zeros(2, 3, 9, 6)), ShapeError, r"must be a multiple .*got 3 and 2"),
    (dict(value=torch.zeros(2, 4, 8, 6)), ShapeError, r"share length.*9 != 8"),
    (dict(key=torch.zeros(2, 2, 9, 4)), ShapeError, r"share head_dim.*8 != 4"),
    (dict(log_decay=torch.zeros(2, 2, 9)), ShapeError, r"\(2, 4, 9\) or \(2, 4, 9, 8\), got"),
    (dict(log_decay=torch.zeros(2, 4, 9).long()), DtypeError, r"got \(2, 4, 9\) int64"),
    (dict(log_decay=0.5), ArgumentError, "got 0.5"),
    (dict(initial_state=torch.zeros(2, 4, 6, 8)), ShapeError, r"must be \(2, 4, 8, 6\), got"),
    (dict(initial_state=torch.zeros(2, 4, 8, 6).half()), DtypeError, "float32 or wider.*float16"),
    (dict(initial_state=torch.zeros(2, 4, 8, 6, device="meta")), DeviceError, "meta and cpu"),
    (dict(mask=attnkit.sliding_window(3)), UnsupportedError, r"cannot apply .*sliding_window\(3\)"),
    (dict(mask=attnkit.padding([1, 10])), MaskError, r"0\.\.9, got 1\.\.10"),
    (dict(mask=None), MaskError, r"attnkit.full\(\) hides nothing"),
    (dict(variant="multi_head"), ArgumentError, "'multi_head' is of 'softmax'"),
    (dict(variant="auto"), ArgumentError, "must be named"),
    (dict(beta=torch.ones(2, 4, 9)), UnsupportedError, "beta: asked for, not promised"),
    (dict(options=attnkit.Options()), ArgumentError, "options of variant 'gated_linear' must be"),
]


def test_a_wrong_argument_is_refused_by_name(
    change: dict[str, object], error: type[AttnkitError], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(**change)


def test_a_padded_token_leaves_the_state_as_it_was() -> None:
    _, whole = call()
    _, short = call(mask=attnkit.padding([9, 0]))
    assert torch.equal(short[0], whole[0])
    assert not short[1].any()


def test_a_document_starts_from_an_empty_state() -> None:
    ids = torch.tensor([[0] * 4 + [1] * 5, [0] * 9])
    out, state = call(mask=attnkit.documents(ids))
    torch.manual_seed(0)
    query, key = torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8)
    value, decay = torch.randn(2, 4, 9, 6), -torch.rand(2, 4, 9)
    alone, alone_state = attnkit.recurrence(
        query[:1, :, 4:],
        key[:1, :, 4:],
        value[:1, :, 4:],
        variant="gated_linear",
        log_decay=decay[:1, :, 4:],
    )
    torch.testing.assert_close(out[:1, :, 4:], alone, **CLOSE)
    torch.testing.assert_close(state[:1], alone_state, **CLOSE)
    whole, _ = call()
    torch.testing.assert_close(out[1], whole[1], **CLOSE)


def test_a_document_that_begins_a_chunk_forgets_the_state() -> None:
    ids = torch.tensor([[0] * 4 + [1] * 9, [0] * 13])
    state = torch.ones(2, 4, 8, 6)
    out, _ = call(mask=attnkit.documents(ids), initial_state=state, seen=4)
    fresh, _ = call()
    kept, _ = call(initial_state=state)
    torch.testing.assert_close(out[0], fresh[0], **CLOSE)
    torch.testing.assert_close(out[1], kept[1], **CLOSE)


def test_a_state_that_was_given_is_not_written_to() -> None:
    state = torch.ones(2, 4, 8, 6)
    call(initial_state=state)
    assert torch.equal(state, torch.ones(2, 4, 8, 6))


@pytest.mark.parametrize("sizes", [(0, 9), (2, 0)], ids=["no samples", "no tokens"])
def test_empty_inputs_give_empty_outputs_and_keep_the_state(sizes: tuple[int, int]) -> None:
    batch, length = sizes
    state = torch.ones(batch, 4, 8, 6)
    out, after = call(
        query=torch.zeros(batch, 2, length, 8),
        key=torch.zeros(batch, 2, length, 8),
        value=torch.zeros(batch, 4, length, 6),
        log_decay=torch.zeros(batch, 4, length),
        initial_state=state,
    )
    assert out.shape == (batch, 4, length, 6)
    assert torch.equal(after, state)
    assert after.numel() == 0 or after.data_ptr() != state.data_ptr()


def test_nan_in_padding_reaches_no_gradient() -> None:
    torch.manual_seed(0)
    value = torch.randn(2, 4, 9, 6)
    value[1, :, 5:] = float("nan")
    value.requires_grad_()
    out, state = call(value=value, mask=attnkit.padding([9, 5]))
    assert out.isfinite().all()
    (out.sum() + state.sum()).backward()
    assert value.grad is not None
    assert value.grad.isfinite().all()
    assert not value.grad[1, :, 5:].any()


def test_half_inputs_keep_a_float32_state() -> None:
    halves = [torch.randn(1, 1, 4, 8).bfloat16() for _ in range(3)]
    out, state = attnkit.recurrence(*halves, variant="linear")
    assert (out.dtype, state.dtype) == (torch.bfloat16, torch.float32)


DOCUMENTS = attnkit.documents(torch.arange(21)[None].repeat(2, 1) // 9)
MASKS = {
    "none": (attnkit.full(), 0),
    "padding after three tokens": (attnkit.padding([24, 17]), 3),
    "left padding": (attnkit.left_padding([0, 6]), 0),
    "documents": (DOCUMENTS, 0),
    "documents and padding": (DOCUMENTS & attnkit.padding([21, 11]), 0),
}


@pytest.mark.parametrize(("mask", "seen"), MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("dynamic", [None, True])
def test_a_recurrence_is_one_operator_of_a_graph(
    mask: attnkit.Mask, seen: int, dynamic: bool | None
) -> None:
    def run(*given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        *tensors, decay, state = given
        return attnkit.recurrence(
            *tensors,
            variant="gated_linear",
            log_decay=decay,
            scale=0.5,
            mask=mask,
            seen=seen,
            initial_state=state,
        )

    torch.manual_seed(0)
    leaves = [*torch.randn(2, 2, 2, 21, 8), torch.randn(2, 4, 21, 8)]
    leaves += [-torch.rand(2, 4, 21), torch.randn(2, 4, 8, 8)]
    leaves = [each.requires_grad_() for each in leaves]
    torch.compiler.reset()
    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(run, fullgraph=True, dynamic=dynamic, backend=graphs)
    outs, wanted = compiled(*leaves), run(*leaves)
    grads, wanted_grads = (
        torch.autograd.grad(out.sin().sum() + state.cos().sum(), leaves)
        for out, state in (outs, wanted)
    )
    pairs = zip((*outs, *grads), (*wanted, *wanted_grads), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
    asked = [node.target for node in graphs.graphs[-1].graph.nodes]
    assert asked.count(torch.ops.attnkit.recurrence.default) == 1


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (attnkit.padding([13, 12]), r"padding lengths must lie in 0\.\.S = 0\.\.12, got 12\.\.13"),
        (attnkit.documents(torch.zeros(2, 11, dtype=torch.long)), r"must be \(B, S\) = \(2, 12\)"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused_when_the_graph_runs(
    mask: attnkit.Mask, told: str
) -> None:
    tensors = torch.randn(3, 2, 2, 12, 8)

    def run(*given: torch.Tensor) -> torch.Tensor:
        return attnkit.recurrence(*given, variant="linear", mask=mask)[0]

    torch.compiler.reset()
    with pytest.raises(MaskError, match=told):
        torch.compile(run, fullgraph=True, backend="eager")(*tensors)


def test_a_compiled_recurrence_runs_what_cannot_be_traced() -> None:
    linear = attnkit.get_variant("linear")

    def recur(*given: Any, **keywords: Any) -> tuple[torch.Tensor, torch.Tensor]:
        assert "nothing" not in str(given[0].sum().item())
        return definition(*given, **keywords)

    own = replace(linear.implementations[0], function=recur)
    variant = replace(linear, name="acme_linear", implementations=(own,))
    tensors = torch.randn(3, 1, 2, 12, 8)

    def run(*given: torch.Tensor) -> torch.Tensor:
        return attnkit.recurrence(*given, variant=variant)[0]

    with attnkit.register(variant):
        compiled = torch.compile(run, fullgraph=True, backend="eager")
        assert torch.equal(compiled(*tensors), run(*tensors))


def test_a_recurrence_that_does_not_promise_to_compile_is_refused_in_a_graph() -> None:
    linear = attnkit.get_variant("linear")
    promises = linear.promises.model_copy(update={"compile": False})
    own = replace(linear.implementations[0], promises=promises)
    variant = replace(linear, name="acme_linear", implementations=(own,), promises=promises)
    tensors = torch.randn(3, 1, 2, 12, 8)
    with (
        attnkit.register(variant),
        pytest.raises(Exception, match="compile: asked for, not promised"),
    ):
        torch.compile(
            lambda *given: attnkit.recurrence(*given, variant=variant)[0],
            fullgraph=True,
            backend="eager",
        )(*tensors)


class Kind(Enum):
    SHARP = "sharp"
    SOFT = "soft"


class Powers(attnkit.Options):
    """Options of several types: what a graph is told of them comes back as it was."""

    kind: Kind = Kind.SOFT
    powers: tuple[float, ...] = Field(default=(1.0,), strict=True)

    def features(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sum powers of the query."""
        assert type(self.kind) is Kind
        assert type(self.powers) is tuple
        return sum((query.abs() ** power for power in self.powers), query * 0), key, value


def test_options_of_a_compiled_recurrence_are_those_that_were_given() -> None:
    tensors = torch.randn(3, 1, 2, 12, 8)
    linear = attnkit.get_variant("linear")
    own = linear.implementations[0]
    variant = replace(linear, name="acme_powers", options=Powers, implementations=(own,))
    options = Powers(kind=Kind.SHARP, powers=(0.5, 2.0))

    def run(*given: torch.Tensor) -> torch.Tensor:
        return attnkit.recurrence(*given, variant=variant, options=options)[0]

    torch.compiler.reset()
    with attnkit.register(variant):
        compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="eager")
        assert torch.equal(compiled(*tensors), run(*tensors))
        assert not torch.equal(compiled(*tensors), attnkit.recurrence(*tensors, variant=variant)[0])
