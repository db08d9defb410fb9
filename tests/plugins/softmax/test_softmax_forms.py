"""What every fast form of softmax attention owes: the same cases for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch

import attnkit
from attnkit.errors import UnsupportedError
from attnkit_contracts.judging.units import ANALYTIC_GATE
from attnkit_plugins.softmax import block_sparse, flash, sliding_window

if TYPE_CHECKING:
    from torch import Tensor

    from attnkit import Mask, Variant
    from conftest import DrawInputs, SoftmaxError

CAUSAL = attnkit.causal()


def coin(*shape: int, share: float = 0.5) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(5)) < share


class Form(NamedTuple):
    """An implementation, and the part of a mask that it cannot do without."""

    variant: Variant
    implementation: str
    needs: Mask = attnkit.full()
    few: Mask = attnkit.full()
    """The same, of 5 queries and 7 keys."""

    def __call__(self, tensors: dict[str, Tensor], mask: Mask, **options: Any) -> Tensor:
        options = {"variant": self.variant, "implementation": self.implementation, **options}
        return attnkit.attention(**tensors, mask=mask, **options)


WINDOW = attnkit.sliding_window(20), attnkit.sliding_window(3)
TILED = Form(flash.VARIANT, "tiled")
BLOCKED = Form(sliding_window.VARIANT, "blocked", *WINDOW)
UNFOLDED = Form(sliding_window.VARIANT, "unfolded", *WINDOW)
GATHERED = Form(
    block_sparse.VARIANT,
    "gathered",
    attnkit.blocks(coin(2, 4, 10, 10, share=0.4), 16),
    attnkit.blocks(coin(1, 4, 3, 3, share=0.6), 3),
)
FORMS = {form.implementation: form for form in (TILED, BLOCKED, UNFOLDED, GATHERED)}
DERIVED = {name: form for name, form in FORMS.items() if form is not UNFOLDED}
"""Those with a backward pass of their own."""


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(
    "other",
    [
        CAUSAL & attnkit.sliding_window(12),
        attnkit.padding([0, 140]),
        CAUSAL & attnkit.left_padding([100, 3]),
        attnkit.documents(torch.arange(150).repeat(2, 1) // 40),
        attnkit.prefix_lm([5, 120]),
        attnkit.dense(coin(1, 4, 70, 150)),
        attnkit.blocks(coin(2, 1, 5, 5, share=0.8), 32),
    ],
    ids=repr,
)
def test_it_composes_with_every_mask(
    draw_inputs: DrawInputs,
    softmax_error: SoftmaxError,
    dtype: torch.dtype,
    form: Form,
    other: Mask,
) -> None:
    tensors = draw_inputs(queries=70, dtype=dtype)
    mask = other & form.needs
    assert softmax_error(form.variant, form.implementation, tensors, mask=mask) <= ANALYTIC_GATE


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_it_takes_sinks_softcap_bias_and_grouped_heads_together(
    draw_inputs: DrawInputs,
    softmax_error: SoftmaxError,
    dtype: torch.dtype,
    form: Form,
    kv_heads: int,
    softcap: float | None,
) -> None:
    # the first rows of more queries than keys are out of reach of all keys
    queries = 140 if form is GATHERED else 250
    tensors = draw_inputs(queries=queries, kv_heads=kv_heads, value_width=5, dtype=dtype)
    generator = torch.Generator().manual_seed(2)
    if form is not GATHERED:
        tensors["bias"] = torch.randn(4, 1, 150, generator=generator).to(dtype)
    tensors["sinks"] = torch.randn(4, generator=generator).to(dtype)
    mask = CAUSAL & form.needs & attnkit.padding([0, 130])
    given: dict[str, Any] = {"mask": mask, "scale": 0.7, "softcap": softcap}
    assert softmax_error(form.variant, form.implementation, tensors, **given) <= ANALYTIC_GATE


@pytest.mark.parametrize("form", DERIVED.values(), ids=DERIVED)
def test_it_passes_gradcheck(draw_inputs: DrawInputs, form: Form) -> None:
    tensors = draw_inputs(queries=5, keys=7, batch=1, width=3, value_width=3, dtype=torch.float64)
    if form is not GATHERED:
        tensors["bias"] = torch.randn(5, 7, generator=torch.Generator().manual_seed(4)).double()
    tensors["sinks"] = torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)
    names = tuple(tensors)

    def run(*given: Tensor) -> Tensor:
        return form(dict(zip(names, given, strict=True)), CAUSAL & form.few, softcap=2.0)

    assert torch.autograd.gradcheck(run, [each.requires_grad_() for each in tensors.values()])


@pytest.mark.parametrize("form", DERIVED.values(), ids=DERIVED)
def test_it_refuses_second_derivatives(draw_inputs: DrawInputs, form: Form) -> None:
    tensors = draw_inputs(queries=5, keys=7)
    query = tensors["query"].requires_grad_()
    (grad,) = torch.autograd.grad(form(tensors, form.few).square().sum(), query, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_dropout_is_refused(draw_inputs: DrawInputs, form: Form) -> None:
    with pytest.raises(UnsupportedError, match="dropout"):
        form(draw_inputs(), form.needs, dropout_p=0.1, implementation="auto")


@pytest.mark.parametrize("form", [Form(flash.VARIANT, "sdpa"), UNFOLDED])
def test_it_compiles_to_one_graph(draw_inputs: DrawInputs, form: Form) -> None:
    def run(*given: Tensor) -> Tensor:
        tensors = dict(zip(("query", "key", "value"), given, strict=True))
        return form(tensors, CAUSAL & form.needs)

    torch.compiler.reset()
    leaves = [each.requires_grad_() for each in draw_inputs(queries=70, keys=70).values()]
    out = torch.compile(run, backend="aot_eager", fullgraph=True)(*leaves)
    expected = run(*leaves)
    # a graph leaves products to MKL, eager mode to oneDNN
    torch.testing.assert_close(out, expected)
    grads = torch.autograd.grad(out.sin().sum(), leaves)
    for got, wanted in zip(grads, torch.autograd.grad(expected.sin().sum(), leaves), strict=True):
        torch.testing.assert_close(got, wanted)
