"""The fast tier stays fast: its work is counted, as milliseconds depend on who else computes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import attnkit_contracts
from attnkit_contracts.definitions import oracle
from attnkit_contracts.definitions.answers import MOST, Answers, question
from attnkit_contracts.inputs.calls import Call

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.slow

# in float32, every third instance of all implementations, auto and the layer; measured when all
# instances of a variant took 2.0 to 2.4 s of one core, and a tenth more. 3 s are the most that a
# variant may take in a dtype
OPERATIONS = {"gated_linear": 238_000, "flash": 121_000, "moe": 167_000}


class Counter(TorchDispatchMode):
    """Counts the operations that torch runs, backward passes included."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("variant", OPERATIONS)
def test_a_variant_is_checked_with_few_operations(variant: str) -> None:
    # counting takes longer than what is counted
    instances = attnkit_contracts.plan(variant, dtypes=["float32"])[::3]
    with Counter() as counter:
        records = [each.run(explain=False) for each in instances]

    assert {record.status for record in records} <= {"passed", "unsupported"}
    # far fewer: then something is no longer checked
    assert OPERATIONS[variant] / 2 < counter.count <= OPERATIONS[variant]


def test_the_definition_is_asked_once_for_all_implementations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []
    definition: Callable[..., Any] = oracle.recurrence

    def counted(*tensors: torch.Tensor, **given: Any) -> Any:
        asked.append(tensors[0].shape)
        return definition(*tensors, **given)

    monkeypatch.setattr(oracle, "recurrence", counted)
    counts = {}
    for names in (["recurrent"], ["recurrent", "chunked", "auto"]):
        asked.clear()
        plan = attnkit_contracts.plan("linear", dtypes=["float32"], implementations=names)
        for each in plan:
            if each.check.id in ("N1.recurrence", "N2.recurrence_backward"):
                assert each.run(explain=False).status == "passed"
        counts[len(names)] = len(asked)

    assert counts[3] == counts[1] > 0


def test_an_implementation_is_called_however_often_its_answer_is_known() -> None:
    plan = attnkit_contracts.plan("linear", dtypes=["float32"], implementations=["recurrent"])
    (instance,) = [each for each in plan if each.check.id == "S5.strides"]
    counts = []
    for _ in range(2):
        with Counter() as counter:
            assert instance.run(explain=False).status == "passed"
        counts.append(counter.count)

    # two definitions less, six calls of 17 tokens as before
    assert counts[0] > counts[1] > 6 * 17


CALL = Call({"query": torch.ones(1, 1, 2, 1), "key": torch.ones(1, 1, 2, 1)})
SEEN = torch.ones(1, 2, dtype=torch.bool)

OTHER: dict[str, tuple[Any, ...]] = {
    "another question": ("gradients", CALL, (SEEN,)),
    "one other value": ("output", CALL.given(key=torch.tensor([[[[1.0], [1.0001]]]])), (SEEN,)),
    "tensors exchanged": ("output", Call({"query": CALL.tensors["key"]}), (SEEN,)),
    "another dtype": ("output", CALL.map(lambda _, t: t.bfloat16()), (SEEN,)),
    "another shape": ("output", CALL.map(lambda _, t: t.mT), (SEEN,)),
    "an extra": ("output", CALL.saying(scale=0.5), (SEEN,)),
    "another mask": ("output", CALL, (~SEEN,)),
    "no mask": ("output", CALL, (None,)),
    "another gradient": ("output", CALL, (SEEN,), torch.ones(1)),
}


@pytest.mark.parametrize("other", OTHER)
def test_a_call_is_the_same_only_to_the_last_bit(other: str) -> None:
    again = CALL.map(lambda _, tensor: tensor.clone())

    assert question("output", CALL, (SEEN,)) == question("output", again, (SEEN.clone(),))
    assert question("output", CALL, (SEEN,)) != question(*OTHER[other])


def test_old_answers_are_forgotten() -> None:
    answers, asked = Answers(), []
    for number in (*range(MOST + 1), 0, MOST):
        answers.to(str(number).encode(), lambda n=number: asked.append(n))  # type: ignore[misc]  # a default keeps the loop's value

    assert asked == [*range(MOST + 1), 0]


def test_answers_are_shared_within_a_plan_alone() -> None:
    one, other = (attnkit_contracts.plan("linear", dtypes=["float32"]) for _ in range(2))

    assert len({id(each.target.answers) for each in one}) == 1
    assert one[0].target.answers is not other[0].target.answers
