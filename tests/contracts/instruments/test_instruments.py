"""What checks look through sees what it should, and where it should."""

from __future__ import annotations

import gc
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from mutants_custom_ops import GRADIENT, RIGHT_COPY

import attnkit
from attnkit_contracts.inputs.calls import Call
from attnkit_contracts.instruments.poison_and_meters import CustomCalls, Poisoned
from attnkit_contracts.instruments.process_state import (
    changes,
    guarded,
    process_state,
    unusual,
)
from attnkit_contracts.instruments.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = frozenset({__name__.partition(".")[0]})
ELSEWHERE = frozenset({"another_package"})


def half_written(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    out[: len(x) // 2] = x[: len(x) // 2]
    return out


def half_counted(x: torch.Tensor) -> torch.Tensor:
    out = x.new_empty(x.shape, dtype=torch.int64)
    out[: len(x) // 2] = 7
    return out


def poisoned(
    function: Callable[[torch.Tensor], torch.Tensor], packages: frozenset[str]
) -> list[float]:
    with Poisoned(packages, math.nan):
        return [float(each) for each in function(torch.ones(4))]


def test_memory_that_nobody_wrote_is_filled() -> None:
    assert poisoned(half_written, HERE)[:2] == [1.0, 1.0]
    assert all(map(math.isnan, poisoned(half_written, HERE)[2:]))
    assert poisoned(half_counted, HERE) == [7, 7, 1, 1]


def test_memory_of_other_packages_is_left_alone() -> None:
    theirs: dict[str, Any] = {"__name__": "another_package.kernels", "torch": torch}
    exec("def make(x): return torch.empty_like(x)", theirs)
    x, filled = torch.ones(4), torch.full((4,), 3.0)

    with Poisoned(ELSEWHERE, 3.0):
        assert torch.equal(theirs["make"](x), filled)
    with Poisoned(HERE, 3.0):
        assert not torch.equal(theirs["make"](x), filled)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_memory_that_is_allocated_in_a_graph_is_filled(backend: str) -> None:
    compiled = torch.compile(half_written, backend=backend, fullgraph=True)
    compiled(torch.ones(4))

    # dynamo cannot tell whose code it traces
    assert all(map(math.isnan, poisoned(compiled, ELSEWHERE)[2:]))
    assert poisoned(torch.compile(half_counted, backend=backend), HERE) == [7, 7, 1, 1]


def test_calls_of_custom_operations_are_noted_with_whether_autograd_records_them() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    with CustomCalls() as calls:
        RIGHT_COPY(x.sin())
        GRADIENT(x.detach())
        torch.ops.attnkit_tests.gradient(x.detach())

    assert set(calls.asked) == {("attnkit_tests::copy", True), ("attnkit_tests::gradient", False)}
    assert calls.count >= 3
    kept = calls.asked["attnkit_tests::copy", True].args[0]
    assert torch.equal(kept, x.sin())
    assert not kept.requires_grad


def test_what_a_compiled_function_calls_is_noted() -> None:
    compiled = torch.compile(lambda x: RIGHT_COPY(x + 1), backend="aot_eager", fullgraph=True)
    with CustomCalls() as calls:
        compiled(torch.randn(3, 4))

    assert {name for name, _ in calls.asked} == {"attnkit_tests::copy"}


def test_operations_of_torch_are_none_of_them() -> None:
    with CustomCalls() as calls:
        torch.ops.aten.sin.default(torch.ones(2))

    assert calls.count > 0
    assert calls.asked == {}


def test_what_is_unusual_for_a_while_is_put_back() -> None:
    before = process_state()
    with unusual():
        assert "the precision of products" in changes(before)
    assert changes(before) == []


CHANGES: dict[str, Callable[[], object]] = {
    "the default dtype": lambda: torch.set_default_dtype(torch.float64),
    "the number of threads": lambda: torch.set_num_threads(1),
    "whether gradients are on": lambda: torch.set_grad_enabled(False),
    "torch's random numbers": lambda: torch.manual_seed(0),
    "deterministic algorithms": lambda: torch.use_deterministic_algorithms(mode=True),
    "whether numbers near 0 become 0": lambda: torch.set_flush_denormal(True),
    "the collection of garbage": gc.disable,
    "functions of torch": lambda: setattr(torch.nn.functional, "silu", torch.sigmoid),
}


def test_what_is_put_back_by_who_changed_it_is_no_change() -> None:
    before = process_state()
    with guarded(3, draws=False) as changed:
        threads, wide = torch.get_num_threads(), torch.get_default_dtype()
        torch.set_num_threads(1)
        torch.set_default_dtype(torch.float64)
        torch.set_default_dtype(wide)
        # which torch writes into its libraries' own settings, too
        torch.set_float32_matmul_precision(torch.get_float32_matmul_precision())
        torch.set_num_threads(threads)

    assert changed == []
    assert changes(before) == []


@pytest.mark.parametrize("what", CHANGES)
def test_what_changes_is_told_and_put_back(what: str) -> None:
    before = process_state()
    with guarded(3, draws=False) as changed:
        CHANGES[what]()

    assert changed == [what]
    assert changes(before) == []


def test_what_may_draw_may_not_seed() -> None:
    found = []
    for draw in (lambda: torch.rand(1), lambda: torch.manual_seed(3)):
        with guarded(3, draws=True) as changed:
            draw()
        found.append(changed)

    assert found == [[], ["torch's random numbers"]]


def test_what_is_written_to_later_is_told() -> None:
    watch, x, held = Watch(), torch.ones(3), torch.zeros(3)
    ids = torch.zeros(1, 3, dtype=torch.int64)
    call = Call({"x": x}, attnkit.documents(ids))
    watch.run(call, lambda _: held)
    assert list(watch.written_to()) == []

    held.add_(1)
    ids.add_(1)

    assert list(watch.written_to()) == ["a tensor of the call's mask", "what a call gave"]
