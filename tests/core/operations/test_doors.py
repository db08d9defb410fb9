"""What no door passes on: outputs of another kind, tensors of another kind, transforms."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

import attnkit
from attnkit.errors import ImplementationError, UnsupportedError
from attnkit.reference import recurrence, softmax

if TYPE_CHECKING:
    from collections.abc import Callable

QUERY = torch.randn(1, 2, 4, 8, generator=torch.Generator().manual_seed(0))


def with_own(name: str, function: Callable[..., Any]) -> attnkit.Variant:
    """Return the variant with one more implementation, ``own``."""
    right = attnkit.get_variant(name)
    own = replace(right.implementations[0], name="own", function=function)
    return replace(right, name="acme", implementations=(*right.implementations, own))


def returning(answer: Callable[[torch.Tensor], Any]) -> Callable[..., Any]:
    """Attend as is right, and return something else where there is more than a small call."""

    def function(*tensors: torch.Tensor, **given: Any) -> Any:
        return answer(softmax(*tensors, **given))

    return function


WRONG = {
    "shape": (lambda out: out[:, :, 1:], r"got \(1, 2, 3, 8\) in torch.float32"),
    "dtype": (lambda out: out.double(), r"in torch.float32 on cpu, got .* in torch.float64"),
    "device": (lambda out: out.to("meta"), "got .* on meta"),
    "kind": (lambda out: (out, None), "got a tuple"),
    "nothing": (lambda _: None, "got None"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_an_output_of_another_kind_raises_and_names_whose_it_is(wrong: str) -> None:
    answer, told = WRONG[wrong]
    variant = with_own("multi_head", returning(answer))

    # the second time too: what is wrong is not remembered as right
    for _ in range(2):
        with pytest.raises(ImplementationError, match=rf"^acme.own must return .*{told}"):
            attnkit.attention(QUERY, QUERY, QUERY, variant=variant, implementation="own")


@pytest.mark.parametrize("wrong", ["shape", "dtype"])
def test_a_compiled_output_of_another_kind_raises_too(wrong: str) -> None:
    answer, told = WRONG[wrong]
    base = with_own("multi_head", returning(answer))
    compiling = base.implementations[1].promises
    own = replace(base.implementations[-1], promises=compiling)
    # a name of its own: what a graph has chosen is a constant of it
    name = f"acme_{wrong}"
    variant = replace(base, name=name, implementations=(base.implementations[0], own))
    attend = torch.compile(
        lambda each: attnkit.attention(each, each, each, variant=name, implementation="own"),
        backend="eager",
    )

    with (
        attnkit.register(variant),
        pytest.raises(ImplementationError, match=rf"^{name}.own must return .*{told}"),
    ):
        attend(QUERY)


def test_what_inference_mode_made_is_chosen_for_by_itself() -> None:
    asked: list[bool] = []

    def own(*tensors: torch.Tensor, **given: Any) -> torch.Tensor:
        asked.append(torch.is_inference_mode_enabled())
        out = softmax(*tensors, **given)
        # right in inference mode alone
        return out if torch.is_inference_mode_enabled() else out[..., :1]

    variant = with_own("multi_head", own)
    with torch.inference_mode():
        attnkit.attention(QUERY, QUERY, QUERY, variant=variant, implementation="own")
    with pytest.raises(ImplementationError, match="must return"), torch.no_grad():
        attnkit.attention(QUERY, QUERY, QUERY, variant=variant, implementation="own")
    assert asked[-2:] == [True, False]


STATES = {
    "dtype": (lambda out, state: (out.double(), state), "outputs .* got .* torch.float64"),
    "state": (lambda out, state: (out, state[..., 0]), "a state .* got"),
    "one": (lambda out, _: out, "outputs and a state, got"),
}


@pytest.mark.parametrize("wrong", STATES)
def test_a_recurrence_that_returns_another_kind_raises(wrong: str) -> None:
    answer, told = STATES[wrong]
    variant = with_own("gated_linear", lambda *t, **given: answer(*recurrence(*t, **given)))

    with pytest.raises(ImplementationError, match=f"^acme.own must return {told}"):
        attnkit.recurrence(QUERY, QUERY, QUERY, variant=variant, implementation="own",
                           log_decay=-QUERY[..., 0].abs())  # fmt: skip


OTHER_KINDS = {
    "nested": lambda: torch.nested.nested_tensor([QUERY[0], QUERY[0, :, 1:]]),
    "jagged": lambda: torch.nested.nested_tensor(
        [QUERY[0].mT, QUERY[0, :, :2].mT], layout=torch.jagged
    ),
    "sparse": QUERY.to_sparse,
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_a_tensor_of_another_kind_is_refused_by_name(kind: str) -> None:
    other = OTHER_KINDS[kind]()

    with pytest.raises(UnsupportedError, match=r"must be dense, got a (nested|sparse_coo)"):
        attnkit.attention(other, other, other)


def under(transform: str, call: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Run a call under a transform; return its output, gradient or derivative."""
    match transform:
        case "vmap":
            return torch.func.vmap(call)(QUERY[None])[0]
        case "grad":
            return torch.func.grad(lambda query: call(query).sum())(QUERY)
    return torch.func.jvp(call, (QUERY,), (QUERY,))[1]


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("transform", ["vmap", "grad", "jvp"])
def test_under_a_transform_auto_takes_what_can(transform: str) -> None:
    def attend(query: torch.Tensor, **asked: str) -> torch.Tensor:
        return attnkit.attention(query, query, query, mask=attnkit.causal(), **asked)

    attend(QUERY)
    found = under(transform, attend)
    wanted = under(transform, lambda q: attend(q, variant="multi_head", implementation="reference"))

    torch.testing.assert_close(found, wanted)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("mask", [attnkit.padding, attnkit.left_padding, attnkit.prefix_lm])
def test_each_sample_of_a_vmap_may_have_its_own_mask(mask: Callable[..., attnkit.Mask]) -> None:
    def attend(query: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        return attnkit.attention(query, query, query, mask=mask(counts))

    queries, counts = torch.stack([QUERY, 2 * QUERY]), torch.tensor([[2], [3]])
    wanted = torch.stack(list(map(attend, queries, counts)))

    torch.testing.assert_close(torch.func.vmap(attend)(queries, counts), wanted)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("transform", ["vmap", "grad", "jvp"])
def test_under_a_transform_what_cannot_is_refused_by_name(transform: str) -> None:
    def attend(query: torch.Tensor) -> torch.Tensor:
        return attnkit.attention(query, query, query, variant="flash", implementation="tiled")

    with pytest.raises(UnsupportedError, match=f"transforms: needs {transform}, offers none"):
        under(transform, attend)
    # and is there again outside
    attend(QUERY)
